// Where the nodes of a forest stand: generations from left to right, children below each other, parents beside the middle of their children.

export interface Item {
  id: string;
  parent: string | undefined;
}

export interface Placed<T extends Item> {
  item: T;
  depth: number; // 0 for a root
  row: number; // whole for a node without children
  up: Placed<T> | undefined;
  down: Placed<T>[];
  index: number; // among its siblings, from 0
}

export interface Layout<T extends Item> {
  /** Parents before their children, siblings in the order in which they came. */
  nodes: Placed<T>[];
  rows: number;
  depth: number; // generations
}

/** Places items. One whose parent is not among them, or is its own descendant, is a root. */
export function layout<T extends Item>(items: T[]): Layout<T> {
  const known = new Map(items.map((i) => [i.id, i]));
  const children = new Map<string, T[]>();
  const roots: T[] = [];
  for (const item of known.values()) {
    if (item.parent === undefined || !known.has(item.parent) || circular(item, known)) roots.push(item);
    else children.set(item.parent, [...(children.get(item.parent) ?? []), item]);
  }
  const nodes: Placed<T>[] = [];
  let rows = 0;
  let deepest = 0;
  // Snapshots can be a thousand generations deep, which recursion would not survive.
  const stack: { item: T; up: Placed<T> | undefined; index: number }[] = roots.map((item, index) => ({ item, up: undefined, index })).reverse();
  while (stack.length > 0) {
    const { item, up, index } = stack.pop()!;
    const placed: Placed<T> = { item, depth: up ? up.depth + 1 : 0, row: 0, up, down: [], index };
    up?.down.push(placed);
    nodes.push(placed);
    deepest = Math.max(deepest, placed.depth + 1);
    const below = children.get(item.id) ?? [];
    if (below.length === 0) placed.row = rows++;
    for (let i = below.length - 1; i >= 0; i--) stack.push({ item: below[i]!, up: placed, index: i });
  }
  for (let i = nodes.length - 1; i >= 0; i--) {
    const { down } = nodes[i]!;
    if (down.length > 0) nodes[i]!.row = (down[0]!.row + down[down.length - 1]!.row) / 2;
  }
  return { nodes, rows, depth: deepest };
}

function circular<T extends Item>(item: T, known: Map<string, T>): boolean {
  let at = item.parent;
  for (let steps = 0; at !== undefined && steps <= known.size; steps++) {
    if (at === item.id) return true;
    at = known.get(at)?.parent;
  }
  return false;
}

/** The node that an arrow key leads to from another. */
export function neighbour<T extends Item>(all: Layout<T>, from: Placed<T>, key: string): Placed<T> | undefined {
  const near = (candidates: Placed<T>[]) =>
    candidates.reduce<Placed<T> | undefined>((best, n) => (best && Math.abs(best.row - from.row) <= Math.abs(n.row - from.row) ? best : n), undefined);
  switch (key) {
    case "ArrowLeft":
      return from.up;
    case "ArrowRight":
      return near(from.down);
    case "ArrowUp":
      return near(all.nodes.filter((n) => n.depth === from.depth && n.row < from.row));
    case "ArrowDown":
      return near(all.nodes.filter((n) => n.depth === from.depth && n.row > from.row));
    case "Home":
      return all.nodes[0];
    case "End":
      return all.nodes[all.nodes.length - 1];
  }
  return undefined;
}
