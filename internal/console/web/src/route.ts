// Where in the page one is: the part of the address after #, which the server never sees.

export type Tab = "terminal" | "files" | "metrics" | "logs";

export const tabs: readonly Tab[] = ["terminal", "files", "metrics", "logs"];

export type Route =
  | { page: "sandboxes" }
  | { page: "sandbox"; id: string; tab: Tab; path?: string }
  | { page: "templates" }
  | { page: "tree"; focus?: string }
  | { page: "snapshot"; id: string }
  | { page: "diff"; a: string; b: string }
  | { page: "lost" };

export function parse(hash: string): Route {
  const [where = "", query = ""] = hash.replace(/^#?\/?/, "").split("?", 2);
  let parts: string[];
  try {
    parts = where.split("/").map(decodeURIComponent);
  } catch {
    return { page: "lost" };
  }
  const params = new URLSearchParams(query);
  const [page = "", one = "", two = ""] = parts;
  switch (page) {
    case "":
      return { page: "sandboxes" };
    case "sandboxes": {
      if (one === "") return { page: "sandboxes" };
      const tab = tabs.find((t) => t === (two || "terminal"));
      const path = params.get("path");
      return tab ? { page: "sandbox", id: one, tab, ...(path !== null && { path }) } : { page: "lost" };
    }
    case "templates":
      return { page: "templates" };
    case "tree": {
      const focus = params.get("focus");
      return { page: "tree", ...(focus !== null && { focus }) };
    }
    case "snapshots":
      return one === "" ? { page: "lost" } : { page: "snapshot", id: one };
    case "diff":
      return one === "" || two === "" ? { page: "lost" } : { page: "diff", a: one, b: two };
  }
  return { page: "lost" };
}

const safe = encodeURIComponent;

/** The address of a place, for links. */
export const to = {
  sandboxes: "#/sandboxes",
  templates: "#/templates",
  tree: (focus?: string) => (focus === undefined ? "#/tree" : `#/tree?focus=${safe(focus)}`),
  sandbox: (id: string, tab: Tab = "terminal") => `#/sandboxes/${safe(id)}/${tab}`,
  files: (id: string, path: string) => `#/sandboxes/${safe(id)}/files?path=${safe(path)}`,
  snapshot: (id: string) => `#/snapshots/${safe(id)}`,
  diff: (a: string, b: string) => `#/diff/${safe(a)}/${safe(b)}`,
};
