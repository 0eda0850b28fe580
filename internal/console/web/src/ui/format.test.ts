import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, percent, plural, span } from "./format.ts";

test("bytes", () => {
  const cases: [number, string][] = [[0, "0 B"], [1023, "1023 B"], [1024, "1 KiB"], [1536, "1.5 KiB"], [256 << 20, "256 MiB"], [5 * 2 ** 40, "5 TiB"], [5000 * 2 ** 40, "5000 TiB"]];
  for (const [n, want] of cases) assert.equal(bytes(n), want);
});

test("span", () => {
  const cases: [number, string][] = [[-5, "0 s"], [0.4, "0 s"], [59, "59 s"], [60, "1 min"], [61, "1 min 1 s"], [3600, "1 h"], [3661, "1 h 1 min"], [90061, "1 d 1 h"]];
  for (const [n, want] of cases) assert.equal(span(n), want);
});

test("percent and plural", () => {
  assert.equal(percent(0), "0 %");
  assert.equal(percent(3.14), "3.1 %");
  assert.equal(percent(99.6), "100 %");
  assert.equal(plural(1, "fork"), "1 fork");
  assert.equal(plural(0, "process", "processes"), "0 processes");
});
