import assert from "node:assert/strict";
import { test } from "node:test";
import { parse, to } from "./route.ts";

test("every address leads to where it says", () => {
  assert.deepEqual(parse(""), { page: "sandboxes" });
  assert.deepEqual(parse(to.sandboxes), { page: "sandboxes" });
  assert.deepEqual(parse(to.templates), { page: "templates" });
  assert.deepEqual(parse(to.tree()), { page: "tree" });
  assert.deepEqual(parse(to.tree("a b")), { page: "tree", focus: "a b" });
  assert.deepEqual(parse(to.sandbox("x")), { page: "sandbox", id: "x", tab: "terminal" });
  assert.deepEqual(parse(to.files("x", "/a?b#c/%d")), { page: "sandbox", id: "x", tab: "files", path: "/a?b#c/%d" });
  assert.deepEqual(parse(to.snapshot("s")), { page: "snapshot", id: "s" });
  assert.deepEqual(parse(to.diff("a", "b")), { page: "diff", a: "a", b: "b" });
});

test("what is no place is said to be none", () => {
  for (const hash of ["#/nowhere", "#/sandboxes/x/nothing", "#/diff/a", "#/snapshots/", "#/sandboxes/%"]) assert.equal(parse(hash).page, "lost", hash);
});
