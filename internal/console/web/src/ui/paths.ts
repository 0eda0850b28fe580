// Paths inside a sandbox: absolute, with slashes.

export function join(dir: string, name: string): string {
  return `${dir.replace(/\/+$/, "")}/${name}`;
}

export function parent(path: string): string {
  return path.replace(/\/+$/, "").replace(/\/[^/]*$/, "") || "/";
}

/** The path and all above it, from the root: [name, path]. */
export function crumbs(path: string): [string, string][] {
  const out: [string, string][] = [["/", "/"]];
  for (const name of path.split("/").filter((n) => n !== "")) out.push([name, join(out[out.length - 1]![1], name)]);
  return out;
}

/** Why a name can't be one, or an empty string. */
export function badName(name: string): string {
  if (name === "" || name === "." || name === "..") return "That is no name.";
  if (name.includes("/") || name.includes("\0")) return "A name has no slash in it.";
  return "";
}
