// What the graph shows: snapshots, and below each the sandboxes that stand on it.

import type { Sandbox } from "../api/platform.ts";
import { nameOf } from "../api/spore.ts";
import type { SnapshotNode } from "../api/spore.ts";
import { bytes, short } from "../ui/format.ts";

export type Node = { id: string; parent: string | undefined; title: string; about: string } & ({ snapshot: SnapshotNode } | { sandbox: Sandbox });

/** Snapshots that are no machines, which creations keep to start from, are left out unless all are wanted or something shown stands on them. */
export function nodes(snapshots: SnapshotNode[], sandboxes: Sandbox[], all: boolean): Node[] {
  const known = new Map(snapshots.map((s) => [s.id, s]));
  const shown = (s: SnapshotNode): boolean => all || s.kind === "machine";
  const ancestor = (id: string | undefined): string | undefined => {
    const seen = new Set<string>();
    for (let s = id === undefined ? undefined : known.get(id); s && !seen.has(s.id); s = s.parent === undefined ? undefined : known.get(s.parent)) {
      if (shown(s)) return s.id;
      seen.add(s.id);
    }
    return undefined;
  };
  const byAge = [...snapshots].filter(shown).sort((a, b) => a.created.localeCompare(b.created) || a.id.localeCompare(b.id));
  return [
    ...byAge.map((s) => ({ id: s.id, parent: ancestor(s.parent), title: nameOf(s), about: `${s.kind === "machine" ? "snapshot" : s.kind}, ${bytes(s.storedBytes)}`, snapshot: s })),
    ...[...sandboxes]
      .sort((a, b) => a.startedAt.localeCompare(b.startedAt) || a.sandboxID.localeCompare(b.sandboxID))
      .map((s) => ({ id: s.sandboxID, parent: ancestor(s.spore.snapshot ?? s.templateID), title: short(s.sandboxID), about: `sandbox, ${s.state}`, sandbox: s })),
  ];
}
