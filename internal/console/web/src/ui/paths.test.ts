import assert from "node:assert/strict";
import { test } from "node:test";
import { badName, crumbs, join, parent } from "./paths.ts";

test("paths", () => {
  assert.equal(join("/", "a"), "/a");
  assert.equal(join("/a/", "b c"), "/a/b c");
  assert.equal(parent("/a/b/"), "/a");
  assert.equal(parent("/a"), "/");
  assert.equal(parent("/"), "/");
  assert.deepEqual(crumbs("/a//b"), [["/", "/"], ["a", "/a"], ["b", "/a/b"]]);
});

test("names", () => {
  for (const bad of ["", ".", "..", "a/b", "a\0"]) assert.notEqual(badName(bad), "", bad);
  for (const good of ["a", "...", "a b", "ü"]) assert.equal(badName(good), "", good);
});
