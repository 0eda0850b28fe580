// A shell in a sandbox, and this page's hold on it: the shell outlives the page, a broken connection, and the sandbox's sleep.

import type { Guest, ProcessEvent, Selector, Size } from "../api/guest.ts";
import { unbase64 } from "../api/guest.ts";

/** The name by which the page finds its shell again. A fork has the shell too, as it was. */
const tag = "spore-console";

/** Longest piece of input of one request. */
const maxInput = 32 << 10;

export interface Screen {
  size: () => Size;
  write: (bytes: Uint8Array) => void;
}

export type Outcome = { ended: string } | { broken: unknown };

export class Session {
  private readonly guest: Guest;
  private readonly screen: Screen;
  private shell: Selector | undefined;
  private typed: number[] = [];
  private sending = false;

  constructor(guest: Guest, screen: Screen) {
    this.guest = guest;
    this.screen = screen;
  }

  /** Follows the shell that is there, or a new one, until it ends or the connection breaks. Calls back once it can be typed into. */
  async run(signal: AbortSignal, onOpen: (found: boolean) => void): Promise<Outcome> {
    try {
      const found = (await this.guest.processes(signal)).find((p) => p.tag === tag);
      const events = found ? this.guest.follow({ pid: found.pid }, signal) : this.guest.shell(tag, this.screen.size(), signal);
      for await (const event of events) {
        if (event.start) {
          this.shell = { pid: event.start.pid };
          onOpen(found !== undefined);
          if (found) await this.redraw();
          // What was typed before there was a shell.
          await this.type([]);
        }
        this.show(event);
        if (event.end) return { ended: event.end.status ?? "ended" };
      }
      return { broken: new Error("the connection ended before the shell did") };
    } catch (broken) {
      return { broken };
    } finally {
      this.shell = undefined;
      this.typed = [];
    }
  }

  /** Sends input, in order; what is typed while a request is under way goes with the next. */
  async type(bytes: Iterable<number>): Promise<void> {
    for (const b of bytes) this.typed.push(b);
    if (this.sending) return;
    this.sending = true;
    try {
      while (this.typed.length > 0 && this.shell) await this.guest.input(this.shell, new Uint8Array(this.typed.splice(0, maxInput)));
    } finally {
      this.sending = false;
    }
  }

  async resize(size: Size): Promise<void> {
    if (this.shell) await this.guest.resize(this.shell, size);
  }

  /** A shell that one comes back to draws its line again only when its window changes. */
  private async redraw(): Promise<void> {
    const { cols, rows } = this.screen.size();
    await this.resize({ cols: cols + 1, rows });
    await this.resize({ cols, rows });
  }

  private show({ data }: ProcessEvent): void {
    const bytes = data?.pty ?? data?.stdout ?? data?.stderr;
    if (bytes !== undefined) this.screen.write(unbase64(bytes));
  }
}
