// The framing of streams in the Connect protocol: one byte of flags, four of length (big endian), then a message.

/** Flag of the last message of a stream, which holds its error or none. */
export const endOfStream = 2;

/** Longest message that is taken: the agent's own limit. */
export const maxMessage = 8 << 20;

export interface Envelope {
  flags: number;
  message: string;
}

export function seal(message: unknown): Uint8Array<ArrayBuffer> {
  const body = new TextEncoder().encode(JSON.stringify(message));
  const out = new Uint8Array(5 + body.length);
  new DataView(out.buffer).setUint32(1, body.length);
  out.set(body, 5);
  return out;
}

/** Takes a stream of bytes apart, whichever way it was cut. */
export class Opener {
  private pending: Uint8Array[] = [];
  private size = 0;

  /** Returns the messages that are complete with these bytes. */
  push(chunk: Uint8Array): Envelope[] {
    this.pending.push(chunk);
    this.size += chunk.length;
    const out: Envelope[] = [];
    for (;;) {
      if (this.size < 5) return out;
      const head = this.peek(5);
      const length = new DataView(head.buffer, head.byteOffset).getUint32(1);
      if (length > maxMessage) throw new Error(`a message of ${length} bytes is longer than ${maxMessage}`);
      if (this.size < 5 + length) return out;
      const whole = this.peek(5 + length);
      out.push({ flags: whole[0]!, message: new TextDecoder().decode(whole.subarray(5, 5 + length)) });
      this.pending = [whole.subarray(5 + length)];
      this.size -= 5 + length;
    }
  }

  /** Whether the stream stopped in the middle of a message. */
  get torn(): boolean {
    return this.size > 0;
  }

  /** Joins the pending pieces, if the first is not long enough by itself. */
  private peek(n: number): Uint8Array {
    const first = this.pending[0]!;
    if (first.length >= n) return first;
    const joined = new Uint8Array(this.size);
    let at = 0;
    for (const piece of this.pending) {
      joined.set(piece, at);
      at += piece.length;
    }
    this.pending = [joined];
    return joined;
  }
}
