import assert from "node:assert/strict";
import { test } from "node:test";
import type { ImageMap } from "../api/spore.ts";
import { cells } from "./cells.ts";

const map = (size: number, runs: [number, number, number][]): ImageMap => ({ artifact: "memfile", size, blockSize: 4, layers: [], runs });

test("a cell is of the layer that most of it is of", () => {
  const m = map(32, [[0, 4, 0], [4, 12, 1], [16, 4, -1], [20, 12, 0]]);
  assert.deepEqual(cells(m, 4).map((c) => c.layer), [1, 1, 0, 0]);
  assert.deepEqual(cells(m, 100).map((c) => c.layer), [0, 1, 1, 1, -1, 0, 0, 0]);
  assert.deepEqual(cells(m, 1), [{ offset: 0, length: 32, layer: 0 }]);
});

test("cells cover the image, no more and no less", () => {
  for (const most of [1, 2, 3, 5, 7]) {
    const all = cells(map(44, [[0, 44, 2]]), most);
    assert.ok(all.length <= most);
    assert.equal(all.reduce((at, c) => (assert.equal(c.offset, at), at + c.length), 0), 44);
    assert.ok(all.every((c) => c.layer === 2));
  }
});

test("an empty image, and one that nothing is told of", () => {
  assert.deepEqual(cells(map(0, []), 10), []);
  assert.deepEqual(cells(map(8, []), 10).map((c) => c.layer), [-1, -1]);
});
