import assert from "node:assert/strict";
import { test } from "node:test";
import { layout, neighbour } from "./layout.ts";

const item = (id: string, parent?: string) => ({ id, parent });

test("parents stand beside the middle of their children, and nobody on another's place", () => {
  const l = layout([item("a"), item("b", "a"), item("c", "a"), item("d", "b"), item("e", "b"), item("z")]);
  const at = Object.fromEntries(l.nodes.map((n) => [n.item.id, [n.depth, n.row]]));
  assert.deepEqual(at, { a: [0, 1.25], b: [1, 0.5], d: [2, 0], e: [2, 1], c: [1, 2], z: [0, 3] });
  assert.equal(l.rows, 4);
  assert.equal(l.depth, 3);
  assert.equal(new Set(l.nodes.map((n) => `${n.depth} ${n.row}`)).size, l.nodes.length);
});

test("nobody is lost: neither those whose parents are elsewhere, nor circles, nor what came twice", () => {
  const l = layout([item("a", "gone"), item("b", "c"), item("c", "b"), item("d", "c"), item("e", "e"), item("a", "gone")]);
  assert.deepEqual(l.nodes.map((n) => n.item.id).sort(), ["a", "b", "c", "d", "e"]);
});

test("a chain of ten thousand", () => {
  const l = layout(Array.from({ length: 10_000 }, (_, i) => item(`${i}`, i > 0 ? `${i - 1}` : undefined)));
  assert.equal(l.depth, 10_000);
  assert.equal(l.rows, 1);
});

test("arrow keys lead to parent, child and neighbours", () => {
  const l = layout([item("a"), item("b", "a"), item("c", "a"), item("d", "b"), item("z")]);
  const go = (from: string, key: string) => neighbour(l, l.nodes.find((n) => n.item.id === from)!, key)?.item.id;
  assert.equal(go("b", "ArrowLeft"), "a");
  assert.equal(go("a", "ArrowRight"), "b");
  assert.equal(go("b", "ArrowDown"), "c");
  assert.equal(go("c", "ArrowUp"), "b");
  assert.equal(go("a", "ArrowDown"), "z");
  assert.equal(go("a", "ArrowLeft"), undefined);
  assert.equal(go("d", "ArrowRight"), undefined);
  assert.equal(go("d", "Home"), "a");
  assert.equal(go("a", "End"), "z");
  assert.equal(go("a", "x"), undefined);
});
