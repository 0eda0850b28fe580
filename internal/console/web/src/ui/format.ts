// Figures as people read them.

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n: number): string {
  let unit = 0;
  while (Math.abs(n) >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1).replace(/\.0$/, "")} ${units[unit]}`;
}

/** A span of seconds by its two largest units: "2 h 5 min". */
export function span(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const parts: [number, string][] = [
    [Math.floor(s / 86400), "d"],
    [Math.floor(s / 3600) % 24, "h"],
    [Math.floor(s / 60) % 60, "min"],
    [s % 60, "s"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([n]) => n > 0)
    .map(([n, unit]) => `${n} ${unit}`)
    .join(" ");
}

/** Seconds from one moment to another, both as the API writes them or as Date.now() gives them. */
export function seconds(from: string | number, to: string | number): number {
  return (new Date(to).getTime() - new Date(from).getTime()) / 1000;
}

/** The beginning of an id, enough to tell it from others on a page. */
export function short(id: string): string {
  return id.slice(0, 8);
}

export function percent(n: number): string {
  return `${n >= 10 || n === 0 ? Math.round(n) : n.toFixed(1)} %`;
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}

/** A moment in the reader's own time: the time alone if it is of today. */
export function moment(time: string, now = new Date()): string {
  const t = new Date(time);
  if (Number.isNaN(t.getTime())) return "";
  const clock = t.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return t.toDateString() === now.toDateString() ? clock : `${t.toLocaleDateString()} ${clock}`;
}

export function reason(err: unknown): string {
  return err instanceof Error ? err.message : String(err);
}
