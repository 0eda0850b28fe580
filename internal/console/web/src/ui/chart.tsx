// Line charts over time.

import { useId, useRef, useState } from "preact/hooks";
import { moment } from "./format.ts";
import { useWidth } from "./use.ts";

export interface Line {
  name: string;
  style: string; // class of its colour
  points: [number, number][]; // seconds since 1970 and value, ascending
}

interface Props {
  title: string;
  start: number; // seconds since 1970, as is end
  end: number;
  top: number; // the largest value of the axis, which starts at 0
  format: (value: number) => string;
  lines: Line[];
}

const height = 150;
const left = 58;
const below = 18;
const above = 8;

/** Longest silence that a line is drawn across, as a multiple of the usual distance of points. */
const gap = 3;

/** Points of a line that belong together: a sandbox that sleeps is not measured, and no line pretends otherwise. */
export function pieces(points: [number, number][]): [number, number][][] {
  const steps = points.slice(1).map((p, i) => p[0] - points[i]![0]);
  const usual = [...steps].sort((a, b) => a - b)[steps.length >> 1] ?? 0;
  const out: [number, number][][] = [];
  points.forEach((p, i) => {
    if (i === 0 || steps[i - 1]! > usual * gap) out.push([]);
    out[out.length - 1]!.push(p);
  });
  return out;
}

export function Chart({ title, start, end, top, format, lines }: Props) {
  const [at, setAt] = useState<number>();
  const box = useRef<HTMLElement>(null);
  // Drawn in the page's own pixels, so that its letters are as large as all others.
  const width = useWidth(box, 480);
  const id = useId();
  const x = (t: number): number => left + ((t - start) / (end - start || 1)) * (width - left - 4);
  const y = (v: number): number => above + (1 - v / (top || 1)) * (height - above - below);
  const times = lines[0]?.points ?? [];
  const index = at === undefined ? times.length - 1 : Math.min(at, times.length - 1);
  const time = times[index]?.[0];
  const reading = lines.map((l) => `${l.name} ${format(l.points[index]?.[1] ?? 0)}`).join(", ");
  const look = (e: PointerEvent): void => {
    const box = (e.currentTarget as SVGElement).getBoundingClientRect();
    const t = start + (((e.clientX - box.left) / box.width) * width - left) * ((end - start) / (width - left - 4));
    let best = 0;
    times.forEach((p, i) => {
      if (Math.abs(p[0] - t) < Math.abs(times[best]![0] - t)) best = i;
    });
    setAt(best);
  };
  const step = (e: KeyboardEvent): void => {
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: times.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    setAt(Math.max(0, Math.min(times.length - 1, to)));
  };
  return (
    <figure class="chart" ref={box}>
      <figcaption>
        <h2 id={id}>{title}</h2>
        <span class="reading">
          {reading}
          {at !== undefined && time !== undefined && ` at ${moment(new Date(time * 1000).toISOString())}`}
        </span>
      </figcaption>
      <svg
        viewBox={`0 0 ${width} ${height}`}
        role="slider"
        tabindex={0}
        aria-labelledby={id}
        aria-valuemin={0}
        aria-valuemax={times.length - 1}
        aria-valuenow={index}
        aria-valuetext={time === undefined ? "" : `${moment(new Date(time * 1000).toISOString())}: ${reading}`}
        onPointerMove={look}
        onPointerLeave={() => setAt(undefined)}
        onBlur={() => setAt(undefined)}
        onKeyDown={step}
      >
        {[0, 0.5, 1].map((part) => (
          <g key={part}>
            <line class="grid" x1={left} x2={width - 4} y1={y(top * part)} y2={y(top * part)} />
            <text x={left - 6} y={y(top * part) + 4} text-anchor="end">
              {format(top * part)}
            </text>
          </g>
        ))}
        {[start, (start + end) / 2, end].map((t, i) => (
          <text key={i} x={x(t)} y={height - 3} text-anchor={["start", "middle", "end"][i]}>
            {new Date(t * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" })}
          </text>
        ))}
        {lines.map((l) =>
          pieces(l.points).map((piece) => (
            <g key={`${l.name} ${piece[0]![0]}`} class={`line ${l.style}`}>
              <polygon points={[[piece[0]![0], 0] as const, ...piece, [piece[piece.length - 1]![0], 0] as const].map(([t, v]) => `${x(t)},${y(v)}`).join(" ")} />
              <polyline points={piece.map(([t, v]) => `${x(t)},${y(v)}`).join(" ")} />
              {piece.length === 1 && <circle class="point" cx={x(piece[0]![0])} cy={y(piece[0]![1])} r="2" />}
            </g>
          )),
        )}
        {at !== undefined && time !== undefined && (
          <>
            <line class="cursor" x1={x(time)} x2={x(time)} y1={above} y2={height - below} />
            {lines.map((l) => (
              <circle key={l.name} class={`point ${l.style}`} cx={x(time)} cy={y(l.points[index]?.[1] ?? 0)} r="3" />
            ))}
          </>
        )}
      </svg>
      <details>
        <summary>As a table</summary>
        <div class="scroll" tabindex={0} role="region" aria-label={`${title}, as a table`}>
          <table>
            <thead>
              <tr>
                <th scope="col">Time</th>
                {lines.map((l) => (
                  <th key={l.name} scope="col">
                    {l.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {times.map((p, i) => (
                <tr key={p[0]}>
                  <th scope="row">{moment(new Date(p[0] * 1000).toISOString())}</th>
                  {lines.map((l) => (
                    <td key={l.name}>{format(l.points[i]?.[1] ?? 0)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
