// spore's own routes: what there is, how it hangs together, where its bytes lie.

import { short } from "../ui/format.ts";
import { json } from "./http.ts";

export interface Info {
  version: string;
  arch: string;
  engine: { name: string; version: string; accel: string };
}

export interface SnapshotNode {
  id: string;
  names: string[];
  parent?: string;
  kind: string; // image, step, machine
  created: string;
  storedBytes: number; // that it adds to its ancestors
  memoryBytes: number;
  diskBytes: number;
  guestUsed?: number; // bytes of memory in use when it was frozen
  cpuCount?: number;
  image?: string;
  forks: number;
  template?: boolean; // sandboxes can be made from it
  processes?: string[];
}

/** Under this prefix are the daemon's own names of what its sandboxes sleep as. */
const ownNames = "sandbox/";

/** A snapshot's name for people: the first that one of them gave, or the beginning of its id. */
export function nameOf(s: SnapshotNode): string {
  return s.names.find((n) => !n.startsWith(ownNames)) ?? short(s.id);
}

export type Artifact = "memfile" | "rootfs.ext4";

/** Where an image's bytes lie. */
export interface ImageMap {
  artifact: Artifact;
  size: number; // bytes, as are all below
  blockSize: number;
  layers: { snapshot: string; used: number; stored: number }[]; // oldest first
  runs: [offset: number, length: number, layer: number][]; // ascending; layer -1: a hole
  coarse?: boolean; // short runs were joined with their neighbours
}

export interface Region {
  offset: number;
  length: number;
}

export interface ImageDiff {
  size: number;
  changed: number;
  zeroed: number;
  regions: Region[];
}

export type Change = "added" | "removed" | "changed";

export interface FileChange {
  path: string;
  change: Change;
  type: string;
  size_a: number;
  size_b: number;
  what?: string[];
}

export interface ProcessChange {
  change: Change;
  pid: number;
  ppid: number;
  uid: number;
  command: string;
}

export interface Diff {
  a: string;
  b: string;
  disk?: ImageDiff;
  memory?: ImageDiff;
  files: FileChange[];
  processes: ProcessChange[];
  notes?: string[];
  metadata: { field: string; a: string; b: string }[];
}

const v1 = "/spore/v1";

export const spore = {
  info: (signal?: AbortSignal) => json<Info>(`${v1}/info`, { signal }),
  tree: (signal?: AbortSignal) => json<SnapshotNode[]>(`${v1}/tree`, { signal }),
  map: (id: string, artifact: Artifact, signal?: AbortSignal) =>
    json<ImageMap>(`${v1}/snapshots/${encodeURIComponent(id)}/map?artifact=${encodeURIComponent(artifact)}`, { signal }),
  diff: (a: string, b: string, signal?: AbortSignal) => json<Diff>(`${v1}/snapshots/${encodeURIComponent(a)}/diff/${encodeURIComponent(b)}`, { signal }),
};
