// Where the bytes of an image come from, as a grid one can walk through.

import { useState } from "preact/hooks";
import type { ImageMap } from "../api/spore.ts";
import { to } from "../route.ts";
import { cells } from "../tree/cells.ts";
import type { Cell } from "../tree/cells.ts";
import { bytes, percent, plural, short } from "./format.ts";

const columns = 64;
const rows = 24;

/** Shades that there are; older layers share the palest. */
const shades = 5;

interface Props {
  title: string;
  map: ImageMap;
  names: (id: string) => string | undefined;
}

export function HeatMap({ title, map, names }: Props) {
  const [at, setAt] = useState<number>();
  const grid = cells(map, columns * rows);
  const height = Math.ceil(grid.length / columns);
  const newest = map.layers.length - 1;
  const shade = (layer: number): string => (layer < 0 ? "hole" : `age${Math.min(shades - 1, newest - layer)}`);
  const nameOf = (layer: number): string => {
    const id = map.layers[layer]?.snapshot;
    return id === undefined ? "nothing: zeros" : (names(id) ?? short(id));
  };
  const used = map.layers.reduce((n, l) => n + l.used, 0);
  const tell = (c: Cell): string => `${bytes(c.length)} at ${bytes(c.offset)}: ${c.layer < 0 ? "zeros" : `of ${nameOf(c.layer)}`}`;
  const cell = at === undefined ? undefined : grid[at];
  const step = (e: KeyboardEvent): void => {
    const from = at ?? 0;
    const by = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowUp: from - columns, ArrowDown: from + columns, Home: 0, End: grid.length - 1 }[e.key];
    if (by === undefined) return;
    e.preventDefault();
    if (by >= 0 && by < grid.length) setAt(by);
  };
  const look = (e: PointerEvent): void => {
    const box = (e.currentTarget as SVGElement).getBoundingClientRect();
    const index = Math.floor(((e.clientY - box.top) / box.height) * height) * columns + Math.floor(((e.clientX - box.left) / box.width) * columns);
    setAt(index >= 0 && index < grid.length ? index : undefined);
  };
  return (
    <figure class="heat">
      <figcaption>
        <h2>{title}</h2>
        <span class="reading">{cell ? tell(cell) : `${bytes(map.size)}, of which ${bytes(used)} (${percent((used / (map.size || 1)) * 100)}) are not zeros`}</span>
      </figcaption>
      <svg
        viewBox={`0 0 ${columns} ${height}`}
        role="slider"
        tabindex={0}
        aria-label={`${title}: where its bytes come from. Arrow keys walk through it.`}
        aria-valuemin={0}
        aria-valuemax={Math.max(0, grid.length - 1)}
        aria-valuenow={at ?? 0}
        aria-valuetext={grid.length > 0 ? tell(grid[at ?? 0]!) : "empty"}
        onKeyDown={step}
        onPointerMove={look}
        onPointerLeave={() => setAt(undefined)}
        onBlur={() => setAt(undefined)}
      >
        {stretches(grid).map(({ from, to, layer }) => (
          <rect key={from} class={shade(layer)} x={from % columns} y={Math.floor(from / columns)} width={to - from} height="1" />
        ))}
        {at !== undefined && <rect class="here" x={at % columns} y={Math.floor(at / columns)} width="1" height="1" />}
      </svg>
      <p class="dim">
        A cell is {bytes(grid[0]?.length ?? 0)}.{map.coarse ? " Short runs are drawn with their neighbours." : ""}
      </p>
      <table class="legend">
        <caption class="hidden">{title}: layers</caption>
        <thead>
          <tr>
            <th scope="col">Layer of</th>
            <th scope="col">In this image</th>
            <th scope="col">Stored</th>
          </tr>
        </thead>
        <tbody>
          {map.layers
            .map((l, i) => ({ ...l, i }))
            .reverse()
            .map((l) => (
              <tr key={l.snapshot}>
                <th scope="row">
                  <svg class="swatch" viewBox="0 0 1 1" aria-hidden="true">
                    <rect class={shade(l.i)} width="1" height="1" />
                  </svg>
                  <a href={to.snapshot(l.snapshot)}>{nameOf(l.i)}</a>
                  {l.i === newest ? " (its own)" : ""}
                </th>
                <td>{bytes(l.used)}</td>
                <td>{bytes(l.stored)}</td>
              </tr>
            ))}
        </tbody>
      </table>
      {map.layers.length > shades && <p class="dim">{plural(map.layers.length - shades + 1, "oldest layer shares", "oldest layers share")} a shade.</p>}
    </figure>
  );
}

/** Joins neighbouring cells of one layer within a row: far fewer elements to draw. */
function stretches(grid: Cell[]): { from: number; to: number; layer: number }[] {
  const out: { from: number; to: number; layer: number }[] = [];
  grid.forEach((c, i) => {
    const last = out[out.length - 1];
    if (last && last.layer === c.layer && i % columns !== 0) last.to = i + 1;
    else out.push({ from: i, to: i + 1, layer: c.layer });
  });
  return out;
}
