import { useState } from "preact/hooks";
import { ApiError } from "../api/http.ts";
import { nameOf, spore } from "../api/spore.ts";
import type { Artifact } from "../api/spore.ts";
import { to } from "../route.ts";
import { bytes, moment, short } from "../ui/format.ts";
import { HeatMap } from "../ui/heatmap.tsx";
import { Facts, Heading, Missing } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";
import { CreateDialog } from "./create.tsx";

/** A snapshot never changes, but who stands on it does. */
const rarely = 15_000;
const never = 2 ** 31 - 1;

export function SnapshotPage({ id }: { id: string }) {
  const tree = usePoll("tree of a snapshot", (signal) => spore.tree(signal), rarely);
  const [creating, setCreating] = useState(false);
  const s = tree.data?.find((n) => n.id === id || n.names.includes(id));
  const names = (of: string): string | undefined => {
    const found = tree.data?.find((n) => n.id === of);
    return found && nameOf(found);
  };
  if (!tree.data) return <Missing error={tree.error} />;
  if (!s) return <Missing error={new ApiError(404, `There is no snapshot ${id} in the store.`)} />;
  const children = tree.data.filter((n) => n.parent === s.id);
  const facts: [string, preact.ComponentChildren][] = [
    ["Id", <code class="whole">{s.id}</code>],
    ["Made", moment(s.created)],
    ["Kind", s.kind],
    ["Adds", bytes(s.storedBytes)],
    ...(s.guestUsed ? [["In use when frozen", bytes(s.guestUsed)] as [string, string]] : []),
    ...(s.image ? [["Image", s.image] as [string, string]] : []),
    ["Parent", s.parent ? <a href={to.snapshot(s.parent)}>{names(s.parent) ?? short(s.parent)}</a> : "none"],
    ["Sandboxes on it", String(s.forks)],
  ];
  return (
    <>
      <div class="head">
        <Heading>
          Snapshot {nameOf(s) === short(s.id) ? "" : nameOf(s)} <code title={s.id}>{short(s.id)}</code>
        </Heading>
        <div class="row actions">
          {s.template !== false && s.kind === "machine" && (
            <button type="button" class="primary" aria-haspopup="dialog" onClick={() => setCreating(true)}>
              New sandbox
            </button>
          )}
          <a class="button" href={to.tree(s.id)}>
            In the tree
          </a>
          {s.parent && (
            <a class="button" href={to.diff(s.parent, s.id)}>
              Compare with parent
            </a>
          )}
        </div>
      </div>
      <Facts facts={facts} />
      {children.length > 0 && (
        <p>
          Made from it:{" "}
          {children.slice(0, 20).map((c) => (
            <span key={c.id}>
              <a href={to.snapshot(c.id)}>{nameOf(c)}</a>{" "}
            </span>
          ))}
          {children.length > 20 && `and ${children.length - 20} more`}
        </p>
      )}
      <div class="maps">
        {s.memoryBytes > 0 && s.kind === "machine" && <MapOf id={s.id} artifact="memfile" title="Memory" names={names} />}
        <MapOf id={s.id} artifact="rootfs.ext4" title="Disk" names={names} />
      </div>
      {s.processes && s.processes.length > 0 && (
        <section aria-labelledby="processes">
          <h2 id="processes">Processes</h2>
          <ul class="plain">
            {s.processes.map((p, i) => (
              <li key={i}>
                <code>{p}</code>
              </li>
            ))}
          </ul>
        </section>
      )}
      {creating && <CreateDialog template={s.names[0] ?? s.id} onDone={() => undefined} onClose={() => setCreating(false)} />}
    </>
  );
}

function MapOf({ id, artifact, title, names }: { id: string; artifact: Artifact; title: string; names: (id: string) => string | undefined }) {
  const map = usePoll(`map ${id} ${artifact}`, (signal) => spore.map(id, artifact, signal), never);
  return map.data ? <HeatMap title={title} map={map.data} names={names} /> : <Missing error={map.error} />;
}
