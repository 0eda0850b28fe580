import assert from "node:assert/strict";
import { test } from "node:test";
import { endOfStream, maxMessage, Opener, seal } from "./envelope.ts";

function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(parts.flatMap((p) => [...p]));
}

test("what was sealed is opened, however the stream is cut", () => {
  const end = seal({});
  end[0] = endOfStream;
  const stream = joined(seal({ event: { start: { pid: 7 } } }), seal("ü"), seal(""), end);
  for (let size = 1; size <= stream.length; size++) {
    const opener = new Opener();
    const got = [];
    for (let at = 0; at < stream.length; at += size) got.push(...opener.push(stream.subarray(at, at + size)));
    assert.deepEqual(got.map((e) => [e.flags, JSON.parse(e.message)]), [[0, { event: { start: { pid: 7 } } }], [0, "ü"], [0, ""], [endOfStream, {}]], `pieces of ${size}`);
    assert.equal(opener.torn, false);
  }
});

test("a stream that stops within a message is torn", () => {
  const opener = new Opener();
  assert.deepEqual(opener.push(seal("abc").subarray(0, 7)), []);
  assert.equal(opener.torn, true);
});

test("a length beyond the limit is refused before it is waited for", () => {
  const head = new Uint8Array(5);
  new DataView(head.buffer).setUint32(1, maxMessage + 1);
  assert.throws(() => new Opener().push(head), /longer than/);
});
