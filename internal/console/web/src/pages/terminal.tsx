import type { Terminal } from "@xterm/xterm";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Guest } from "../api/guest.ts";
import { sandboxes } from "../api/platform.ts";
import { Session } from "../term/session.ts";
import { reason } from "../ui/format.ts";

interface Props {
  id: string;
  guest: Guest;
  running: boolean;
}

const keys: [string, string, string][] = [
  ["Esc", "Esc", "\x1b"],
  ["Tab", "Tab", "\t"],
  ["^C", "Control C", "\x03"],
  ["^D", "Control D", "\x04"],
  ["↑", "Up", "\x1b[A"],
  ["↓", "Down", "\x1b[B"],
];

/** A shell of the sandbox. It stays where it is while one looks at something else, and while the sandbox sleeps. */
export function TerminalTab({ id, guest, running }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const after = useRef<HTMLButtonElement>(null);
  const terminal = useRef<Terminal | undefined>(undefined);
  const session = useRef<Session | undefined>(undefined);
  const [ready, setReady] = useState(false);
  const [status, setStatus] = useState("Loading the terminal…");
  const [attempt, setAttempt] = useState(0);
  const [over, setOver] = useState(false);

  useEffect(() => {
    let dispose = (): void => undefined;
    let gone = false;
    void import("../term/xterm.ts").then(
      ({ Terminal, FitAddon }) => {
        if (gone) return;
        const t = new Terminal({ cursorBlink: !calm(), fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace", fontSize: 13, minimumContrastRatio: 4.5, screenReaderMode: true, scrollback: 5000, theme: theme() });
        const fit = new FitAddon();
        t.loadAddon(fit);
        t.open(box.current!);
        // Tab belongs to the shell: this key leads out.
        t.attachCustomKeyEventHandler((e) => {
          if (e.key !== "F6" || !e.shiftKey) return true;
          if (e.type === "keydown") after.current?.focus();
          e.preventDefault();
          return false;
        });
        const resize = new ResizeObserver(() => {
          if (box.current && box.current.clientWidth > 0) fit.fit();
        });
        resize.observe(box.current!);
        fit.fit();
        const dark = matchMedia("(prefers-color-scheme: dark)");
        const recolor = (): void => void (t.options.theme = theme());
        dark.addEventListener("change", recolor);
        terminal.current = t;
        setReady(true);
        dispose = () => {
          resize.disconnect();
          dark.removeEventListener("change", recolor);
          t.dispose();
        };
      },
      (err: unknown) => setStatus(`The terminal could not be loaded: ${reason(err)}`),
    );
    return () => {
      gone = true;
      dispose();
    };
  }, []);

  useEffect(() => {
    const t = terminal.current;
    if (!ready || !t) return;
    if (!running) {
      setStatus("The sandbox is paused. Its shell goes on when it wakes.");
      return;
    }
    const abort = new AbortController();
    const s = new Session(guest, { size: () => ({ cols: t.cols, rows: t.rows }), write: (bytes) => t.write(bytes) });
    session.current = s;
    setOver(false);
    const failed = (err: unknown): void => {
      if (!abort.signal.aborted) setStatus(`Not sent: ${reason(err)}`);
    };
    const typing = [
      t.onData((text) => void s.type(new TextEncoder().encode(text)).catch(failed)),
      t.onBinary((text) => void s.type(Uint8Array.from(text, (c) => c.charCodeAt(0))).catch(failed)),
      t.onResize((size) => void s.resize({ cols: size.cols, rows: size.rows }).catch(failed)),
    ];
    // Whoever is no longer followed says nothing of it either: it may be told of the next state already.
    const tell = (text: string): void => {
      if (!abort.signal.aborted) setStatus(text);
    };
    void follow(s, id, abort.signal, tell).then((how) => {
      if (abort.signal.aborted) return;
      setStatus(how);
      setOver(true);
    });
    return () => {
      abort.abort();
      session.current = undefined;
      for (const t of typing) t.dispose();
    };
  }, [ready, running, guest, attempt]);

  const press = (sequence: string): void => {
    void session.current?.type(new TextEncoder().encode(sequence));
    terminal.current?.focus();
  };
  return (
    <div class="terminal">
      <div class="screen" ref={box} role="group" aria-label="Terminal" />
      <div class="row keys" role="group" aria-label="Keys">
        {keys.map(([text, name, sequence]) => (
          <button key={name} type="button" class="quiet" aria-label={name} onClick={() => press(sequence)}>
            {text}
          </button>
        ))}
      </div>
      <div class="row under">
        <span role="status" class="dim">
          {status}
        </span>
        {over && running && (
          <button
            type="button"
            onClick={() => {
              terminal.current?.reset();
              setAttempt(attempt + 1);
              terminal.current?.focus();
            }}
          >
            New shell
          </button>
        )}
        <button ref={after} type="button" class="quiet" onClick={() => terminal.current?.focus()}>
          Into the terminal
        </button>
        <span class="dim">
          <kbd>Shift</kbd> <kbd>F6</kbd> leads out of it
        </span>
      </div>
    </div>
  );
}

const tries = 8;

/** Milliseconds after which one is told why it may take so long. */
const patience = 15_000;

/** Follows the shell through broken connections. Returns in words how it ended. */
async function follow(s: Session, id: string, signal: AbortSignal, tell: (status: string) => void): Promise<string> {
  tell("Connecting…");
  for (let broken = 0; ; broken++) {
    const slow = setTimeout(() => tell("Still connecting. Browsers keep few connections to one address: terminals in other tabs may hold all of them."), patience);
    const how = await s.run(signal, (found) => {
      broken = 0;
      clearTimeout(slow);
      tell(found ? "Back at the shell that runs here." : "A new shell.");
    });
    clearTimeout(slow);
    if (signal.aborted) return "";
    if ("ended" in how) return `The shell is over: ${how.ended}.`;
    // A request to a sandbox that sleeps might wake it, so first it is asked about rather than asked.
    try {
      if ((await sandboxes.get(id, signal)).state !== "running") return "The sandbox is paused. Its shell goes on when it wakes.";
    } catch (err) {
      if (broken >= tries) return `The connection is lost: ${reason(err)}`;
    }
    if (broken >= tries) return `The connection is lost: ${reason(how.broken)}`;
    tell(`Connecting again: ${reason(how.broken)}`);
    await new Promise((resolve) => setTimeout(resolve, Math.min(5000, 250 * 2 ** broken)));
    if (signal.aborted) return "";
  }
}

function calm(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** The page's colours, as the emulator wants them. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const color = (name: string): string => style.getPropertyValue(name).trim();
  return {
    background: color("--term-bg"),
    foreground: color("--term-fg"),
    cursor: color("--term-fg"),
    cursorAccent: color("--term-bg"),
    selectionBackground: color("--term-selection"),
  };
}
