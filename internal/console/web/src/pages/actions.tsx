// What one does to a sandbox, the same wherever it is shown.

import { useState } from "preact/hooks";
import { sandboxes } from "../api/platform.ts";
import type { State } from "../api/platform.ts";
import { Dialog, Field, NumberField } from "../ui/dialog.tsx";
import { plural, short } from "../ui/format.ts";
import { useNotices } from "../ui/notices.tsx";
import { defaultMinutes, mostMinutes } from "./create.tsx";

interface Props {
  id: string;
  state: State;
  /** Called after each deed. */
  onDone: () => Promise<void> | void;
  onKilled?: () => void;
}

type Question = "fork" | "timeout" | "snapshot" | "kill";

export function Actions({ id, state, onDone, onKilled }: Props) {
  const [asked, setAsked] = useState<Question>();
  const [busy, setBusy] = useState("");
  const notices = useNotices();
  const name = short(id);
  const now = async (doing: string, did: string, deed: () => Promise<unknown>): Promise<void> => {
    if (busy !== "") return;
    setBusy(doing);
    try {
      await deed();
      notices.tell(`Sandbox ${name} ${did}`);
    } catch (err) {
      notices.complain(`${doing} ${name}`, err);
    }
    setBusy("");
    await onDone();
  };
  const press = (text: string, doing: string, did: string, deed: () => Promise<unknown>) => (
    <button type="button" aria-label={`${busy === doing ? `${doing}…` : text} sandbox ${name}`} aria-disabled={busy !== ""} onClick={() => now(doing, did, deed)}>
      {busy === doing ? `${doing}…` : text}
    </button>
  );
  const ask = (question: Question, text: string) => (
    <button type="button" aria-haspopup="dialog" aria-label={`${text} sandbox ${name}`} onClick={() => setAsked(question)}>
      {text}
    </button>
  );
  return (
    <div class="row actions" role="group" aria-label={`What to do with sandbox ${name}`}>
      {/* One button, so that the focus stays on it when its meaning changes. */}
      {state === "running" ? press("Pause", "Pausing", "is paused", () => sandboxes.pause(id)) : press("Wake", "Waking", "is awake", () => sandboxes.wake(id, defaultMinutes * 60))}
      {state === "running" && (
        <>
          {ask("fork", "Fork")}
          {ask("snapshot", "Snapshot")}
          {ask("timeout", "Timeout")}
        </>
      )}
      {ask("kill", "Kill")}
      {asked && <Ask question={asked} id={id} onDone={onDone} onKilled={onKilled} onClose={() => setAsked(undefined)} />}
    </div>
  );
}

interface AskProps {
  question: Question;
  id: string;
  onDone: () => Promise<void> | void;
  onKilled: (() => void) | undefined;
  onClose: () => void;
}

function Ask({ question, id, onDone, onKilled, onClose }: AskProps) {
  const [count, setCount] = useState(1);
  const [minutes, setMinutes] = useState(defaultMinutes);
  const [tag, setTag] = useState("");
  const notices = useNotices();
  const name = short(id);
  switch (question) {
    case "fork":
      return (
        <Dialog
          title={`Fork sandbox ${name}`}
          action="Fork"
          onClose={onClose}
          onAct={async () => {
            const results = await sandboxes.fork(id, count, minutes * 60);
            const made = results.filter((r) => r.sandbox);
            const failed = results.find((r) => r.error)?.error;
            if (made.length > 0) notices.tell(`${plural(made.length, "fork")} of ${name}: ${made.map((r) => short(r.sandbox!.sandboxID)).join(", ")}`);
            await onDone();
            if (failed) throw new Error(`${results.length - made.length} of ${results.length} failed: ${failed.message}`);
          }}
        >
          <p>Each fork goes on from where this sandbox is now: its memory, its processes, its disk. The sandbox itself stands still for a moment and runs on.</p>
          <div class="pair">
            <NumberField label="Forks" value={count} min={1} max={100} onValue={setCount} />
            <NumberField label="Minutes to live" value={minutes} min={1} max={mostMinutes} onValue={setMinutes} />
          </div>
        </Dialog>
      );
    case "timeout":
      return (
        <Dialog
          title={`Timeout of sandbox ${name}`}
          action="Set"
          onClose={onClose}
          onAct={async () => {
            await sandboxes.setTimeout(id, minutes * 60);
            notices.tell(`Sandbox ${name} has ${plural(minutes, "minute")}`);
            await onDone();
          }}
        >
          <NumberField label="Minutes from now" value={minutes} min={1} max={mostMinutes} onValue={setMinutes} />
        </Dialog>
      );
    case "snapshot":
      return (
        <Dialog
          title={`Snapshot of sandbox ${name}`}
          action="Take it"
          onClose={onClose}
          onAct={async () => {
            const made = await sandboxes.snapshot(id, tag.trim());
            notices.tell(`Snapshot ${made.names[0] ?? short(made.snapshotID)} of sandbox ${name} is taken`);
            await onDone();
          }}
        >
          <p>The snapshot becomes a template, which any number of sandboxes can be made from. The sandbox runs on.</p>
          <Field label="Name" hint="Optional.">
            {(field, described) => (
              <input id={field} autocomplete="off" spellcheck={false} aria-describedby={described} value={tag} onInput={(e) => setTag(e.currentTarget.value)} />
            )}
          </Field>
        </Dialog>
      );
    case "kill":
      return (
        <Dialog
          title={`Kill sandbox ${name}?`}
          action="Kill it"
          danger
          onClose={onClose}
          onAct={async () => {
            await sandboxes.kill(id);
            notices.tell(`Sandbox ${name} is gone`);
            onKilled?.();
            await onDone();
          }}
        >
          <p>Its memory and its disk are lost. Snapshots that were taken of it stay.</p>
        </Dialog>
      );
  }
}
