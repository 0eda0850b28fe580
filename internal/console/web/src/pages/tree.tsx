import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { sandboxes } from "../api/platform.ts";
import { nameOf, spore } from "../api/spore.ts";
import { to } from "../route.ts";
import { extent, Graph } from "../tree/graph.tsx";
import { layout } from "../tree/layout.ts";
import { nodes } from "../tree/nodes.ts";
import type { Node } from "../tree/nodes.ts";
import { bytes, moment, plural, short } from "../ui/format.ts";
import { Badge, Facts, Heading, Missing, Stale } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";
import { Actions } from "./actions.tsx";
import { CreateDialog } from "./create.tsx";

const zooms = [0.4, 0.6, 0.8, 1, 1.25, 1.6];

export function TreePage({ focus }: { focus: string | undefined }) {
  const tree = usePoll("tree", load, 3000);
  const [current, setCurrent] = useState(focus);
  const [compared, setCompared] = useState<string>();
  const [all, setAll] = useState(false);
  const [zoom, setZoom] = useState(3);
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (focus !== undefined) setCurrent(focus);
  }, [focus]);
  const shown = useMemo(() => (tree.data ? layout(nodes(tree.data.snapshots, tree.data.sandboxes, all)) : undefined), [tree.data, all]);
  const chosen = shown?.nodes.find((p) => p.item.id === current)?.item;
  const step = (by: number): void => setZoom((z) => Math.max(0, Math.min(zooms.length - 1, z + by)));
  const fit = (): void => {
    if (!shown || !box.current) return;
    const { width, height } = extent(shown);
    const wanted = Math.min(box.current.clientWidth / width, box.current.clientHeight / height);
    setZoom(Math.max(0, zooms.filter((z) => z <= wanted).length - 1));
  };
  const compare = (id: string): void => {
    if (tree.data?.snapshots.some((s) => s.id === id) !== true) return;
    if (compared === undefined || compared === id) setCompared(compared === id ? undefined : id);
    else location.hash = to.diff(compared, id);
  };
  const open = (id: string): void => {
    const item = shown?.nodes.find((p) => p.item.id === id)?.item;
    if (item) location.hash = "sandbox" in item ? to.sandbox(id) : to.snapshot(id);
  };
  return (
    <>
      <div class="head">
        <Heading>Tree</Heading>
        {tree.data && (
          <span class="dim">
            {plural(tree.data.snapshots.filter((s) => s.kind === "machine").length, "snapshot")}, {plural(tree.data.sandboxes.length, "sandbox", "sandboxes")}
          </span>
        )}
      </div>
      {tree.data && <Stale error={tree.error} />}
      {!shown ? (
        <Missing error={tree.error} />
      ) : shown.nodes.length === 0 ? (
        <Missing>
          The store holds no snapshot of a machine. Make one with <code>spore create</code>.
        </Missing>
      ) : (
        <>
          <div class="row toolbar">
            <div class="row" role="group" aria-label="Zoom">
              <button type="button" aria-label="Smaller" disabled={zoom === 0} onClick={() => step(-1)}>
                −
              </button>
              <button type="button" aria-label="Larger" disabled={zoom === zooms.length - 1} onClick={() => step(1)}>
                +
              </button>
              <button type="button" onClick={fit}>
                Fit
              </button>
            </div>
            <label class="check">
              <input type="checkbox" checked={all} onChange={(e) => setAll(e.currentTarget.checked)} />
              Also disks of images and steps
            </label>
            <span class="dim keyhelp">
              Arrow keys move, <kbd>Enter</kbd> opens, <kbd>C</kbd> compares, <kbd>+</kbd> <kbd>−</kbd> zoom
            </span>
          </div>
          <div class="explorer">
            <div class="canvas" ref={box}>
              <Graph layout={shown} zoom={zooms[zoom]!} current={current} compared={compared} onCurrent={setCurrent} onOpen={open} onCompare={compare} onZoom={step} />
            </div>
            <aside aria-label="Chosen" class="chosen">
              {chosen ? (
                <Chosen node={chosen} compared={compared} onCompare={compare} onDone={tree.refresh} />
              ) : (
                <p class="dim">Choose a snapshot or a sandbox.</p>
              )}
            </aside>
          </div>
        </>
      )}
    </>
  );
}

async function load(signal: AbortSignal) {
  const [snapshots, list] = await Promise.all([spore.tree(signal), sandboxes.list(signal)]);
  return { snapshots, sandboxes: list };
}

interface ChosenProps {
  node: Node;
  compared: string | undefined;
  onCompare: (id: string) => void;
  onDone: () => Promise<void>;
}

function Chosen({ node, compared, onCompare, onDone }: ChosenProps) {
  const [creating, setCreating] = useState(false);
  if ("sandbox" in node) {
    const s = node.sandbox;
    return (
      <>
        <h2>
          Sandbox <code title={node.id}>{short(node.id)}</code>
        </h2>
        <p>
          <Badge state={s.state} />
        </p>
        <Facts
          facts={[
            ["Size", `${s.cpuCount} CPU, ${s.memoryMB} MiB`],
            ["Started", moment(s.startedAt)],
            ...(s.spore.wakeMs ? [["Last wake", `${s.spore.wakeMs.toFixed(s.spore.wakeMs < 10 ? 1 : 0)} ms${s.spore.pooled ? ", from a pool" : ""}`] as [string, string]] : []),
            ...Object.entries(s.metadata ?? {}),
          ]}
        />
        <div class="row">
          <a class="button primary" href={to.sandbox(node.id)}>
            Open
          </a>
        </div>
        <Actions id={node.id} state={s.state} onDone={onDone} />
      </>
    );
  }
  const s = node.snapshot;
  return (
    <>
      <h2>
        {nameOf(s) === short(s.id) ? "Snapshot" : nameOf(s)} <code title={s.id}>{short(s.id)}</code>
      </h2>
      <Facts
        facts={[
          ...(s.names.length > 1 || nameOf(s) === short(s.id) ? s.names.map((n): [string, string] => ["Name", n]) : []),
          ["Made", moment(s.created)],
          ["Adds", bytes(s.storedBytes)],
          ["Memory", s.memoryBytes > 0 ? bytes(s.memoryBytes) : "none"],
          ["Disk", bytes(s.diskBytes)],
          ...(s.image ? [["Image", s.image] as [string, string]] : []),
          ["Sandboxes on it", String(s.forks)],
        ]}
      />
      <div class="row">
        {s.template !== false && s.kind === "machine" && (
          <button type="button" class="primary" aria-haspopup="dialog" onClick={() => setCreating(true)}>
            New sandbox
          </button>
        )}
        <a class="button" href={to.snapshot(s.id)}>
          Look inside
        </a>
        <button type="button" aria-pressed={compared === s.id} onClick={() => onCompare(s.id)}>
          {compared === undefined || compared === s.id ? "Compare" : `Compare with ${short(compared)}`}
        </button>
      </div>
      {compared === s.id && (
        <p class="dim" role="status">
          Choose the snapshot to compare it with.
        </p>
      )}
      {creating && <CreateDialog template={s.names[0] ?? s.id} onDone={() => void onDone()} onClose={() => setCreating(false)} />}
    </>
  );
}
