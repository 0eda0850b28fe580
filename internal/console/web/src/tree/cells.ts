// A map of an image as a grid of cells.

import type { ImageMap } from "../api/spore.ts";

export interface Cell {
  offset: number;
  length: number; // bytes, both
  layer: number; // that most of it is of; -1: a hole
}

/** Cuts an image into at most so many cells of equal size, whole blocks each. */
export function cells(map: ImageMap, most: number): Cell[] {
  const blocks = Math.ceil(map.size / map.blockSize);
  const size = Math.max(1, Math.ceil(blocks / most)) * map.blockSize;
  const out: Cell[] = [];
  let run = 0;
  for (let offset = 0; offset < map.size; offset += size) {
    const end = Math.min(offset + size, map.size);
    const weight = new Map<number, number>();
    while (run < map.runs.length) {
      const [at, length, layer] = map.runs[run]!;
      const share = Math.min(at + length, end) - Math.max(at, offset);
      if (share > 0) weight.set(layer, (weight.get(layer) ?? 0) + share);
      if (at + length > end) break;
      run++;
    }
    let layer = -1;
    let best = 0;
    for (const [l, w] of weight) if (w > best || (w === best && l > layer)) [layer, best] = [l, w];
    out.push({ offset, length: end - offset, layer });
  }
  return out;
}
