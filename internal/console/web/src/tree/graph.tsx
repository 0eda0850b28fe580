// The forest as a drawing that is a tree to keyboards and screen readers too.

import { useEffect, useRef } from "preact/hooks";
import { neighbour } from "./layout.ts";
import type { Layout, Placed } from "./layout.ts";
import type { Node } from "./nodes.ts";

const node = { width: 172, height: 46, across: 220, down: 60 };
const margin = 12;

interface Props {
  layout: Layout<Node>;
  zoom: number;
  current: string | undefined;
  compared: string | undefined;
  onCurrent: (id: string) => void;
  onOpen: (id: string) => void;
  onCompare: (id: string) => void;
  onZoom: (step: number) => void;
}

/** What the drawing measures at zoom 1. */
export function extent(layout: Layout<Node>): { width: number; height: number } {
  return { width: margin * 2 + Math.max(0, layout.depth - 1) * node.across + node.width, height: margin * 2 + Math.max(0, layout.rows - 1) * node.down + node.height };
}

const x = (p: Placed<Node>): number => margin + p.depth * node.across;
const y = (p: Placed<Node>): number => margin + p.row * node.down;

export function Graph({ layout, zoom, current, compared, onCurrent, onOpen, onCompare, onZoom }: Props) {
  const svg = useRef<SVGSVGElement>(null);
  const { width, height } = extent(layout);
  const roots = layout.nodes.filter((p) => !p.up).length;
  const tabStop = layout.nodes.find((p) => p.item.id === current) ?? layout.nodes[0];
  useEffect(() => element(svg.current, current)?.scrollIntoView({ block: "nearest", inline: "nearest" }), [current]);
  const press = (e: KeyboardEvent, p: Placed<Node>): void => {
    const next = e.altKey || e.ctrlKey || e.metaKey ? undefined : neighbour(layout, p, e.key);
    if (next) {
      // At once: the next key may come before the tree is drawn anew.
      element(svg.current, next.item.id)?.focus();
      onCurrent(next.item.id);
    } else if (e.key === "Enter") onOpen(p.item.id);
    else if (e.key === " ") onCurrent(p.item.id);
    else if (e.key === "c") onCompare(p.item.id);
    else if (e.key === "+" || e.key === "=") onZoom(1);
    else if (e.key === "-") onZoom(-1);
    else return;
    e.preventDefault();
  };
  return (
    <svg ref={svg} class="graph" width={width * zoom} height={height * zoom} viewBox={`0 0 ${width} ${height}`} role="tree" aria-label="Snapshots and the sandboxes that stand on them" aria-orientation="horizontal">
      <g aria-hidden="true">
        {layout.nodes.map((p) => p.up && <path key={p.item.id} class={"sandbox" in p.item ? "edge live" : "edge"} d={edge(p.up, p)} />)}
      </g>
      {layout.nodes.map((p) => {
        const { item } = p;
        const kind = "sandbox" in item ? `sandbox ${item.sandbox.state}` : item.snapshot.kind;
        const marked = item.id === compared ? " compared" : "";
        const title = clip(item.title, 18);
        return (
          <g
            key={item.id}
            data-node={item.id}
            class={`node ${kind}${marked}`}
            transform={`translate(${x(p)} ${y(p)})`}
            role="treeitem"
            tabindex={p === tabStop ? 0 : -1}
            aria-level={p.depth + 1}
            aria-posinset={p.index + 1}
            aria-setsize={p.up ? p.up.down.length : roots}
            aria-selected={item.id === current}
            aria-expanded={p.down.length > 0 ? true : undefined}
            aria-label={`${title} ${item.about}${marked && ", chosen for comparison"}`}
            aria-description={title === item.title ? undefined : item.title}
            onClick={() => onCurrent(item.id)}
            onDblClick={() => onOpen(item.id)}
            onKeyDown={(e) => press(e, p)}
          >
            {title !== item.title && <title>{item.title}</title>}
            <rect width={node.width} height={node.height} rx={"sandbox" in item ? node.height / 2 : 7} />
            {"sandbox" in item && <circle class="dot" cx="20" cy={node.height / 2} r="4.5" />}
            <text class="title" x={"sandbox" in item ? 34 : 12} y="19">
              {title}
            </text>{" "}
            <text class="about" x={"sandbox" in item ? 34 : 12} y="35">
              {item.about}
            </text>
          </g>
        );
      })}
    </svg>
  );
}

function element(svg: SVGSVGElement | null, id: string | undefined): SVGGElement | null | undefined {
  return id === undefined ? undefined : svg?.querySelector<SVGGElement>(`[data-node="${CSS.escape(id)}"]`);
}

function edge(from: Placed<Node>, to: Placed<Node>): string {
  const [x1, y1, x2, y2] = [x(from) + node.width, y(from) + node.height / 2, x(to), y(to) + node.height / 2];
  const middle = (x1 + x2) / 2;
  return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
}

function clip(text: string, most: number): string {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
