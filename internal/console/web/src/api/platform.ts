// The sandbox platform's public routes, as far as the page uses them.

import { json, request } from "./http.ts";

export type State = "running" | "paused";

export interface Sandbox {
  sandboxID: string;
  templateID: string;
  alias?: string;
  state: State;
  startedAt: string;
  endAt: string;
  cpuCount: number;
  memoryMB: number;
  diskSizeMB: number;
  envdVersion: string;
  metadata?: Record<string, string>;
  spore: Origin;
}

/** What spore knows beyond what SDKs ask for. */
export interface Origin {
  parent?: string; // the running sandbox that it was forked from
  snapshot?: string; // what it was last woken from or frozen as
  wakeMs?: number;
  pooled?: boolean;
}

export interface SandboxDetail extends Sandbox {
  envdAccessToken?: string;
  lifecycle?: { autoResume: boolean; onTimeout: "kill" | "pause" };
}

export interface Created {
  sandboxID: string;
  templateID: string;
  envdAccessToken?: string;
}

export interface ForkResult {
  sandbox?: Created;
  error?: { code: number; message: string };
}

export interface Template {
  templateID: string;
  buildID: string;
  names: string[];
  cpuCount: number;
  memoryMB: number;
  diskSizeMB: number;
  createdAt: string;
  lastSpawnedAt: string | null;
  spawnCount: number;
  spore?: { forks: number; pool: number; poolSize: number };
}

export interface Metric {
  timestamp?: string;
  timestampUnix: number;
  cpuCount: number;
  cpuUsedPct: number;
  memTotal: number;
  memUsed: number;
  memCache?: number;
  diskTotal: number;
  diskUsed: number;
}

export type Level = "debug" | "info" | "warn" | "error";

export interface LogEntry {
  timestamp: string;
  level: Level;
  message: string;
  fields: Record<string, string>;
}

export interface NewSandbox {
  templateID: string;
  timeout: number;
  autoPause: boolean;
  autoResume?: { enabled: boolean };
  metadata?: Record<string, string>;
  envVars?: Record<string, string>;
}

/** At most so many pages are read of a list that does not end. */
const maxPages = 50;

async function all<T>(path: string, signal?: AbortSignal): Promise<T[]> {
  const items: T[] = [];
  let token: string | null = null;
  for (let page = 0; page < maxPages; page++) {
    const query = new URLSearchParams({ limit: "100" });
    if (token) query.set("nextToken", token);
    const answer = await request(`${path}?${query}`, { signal });
    items.push(...((await answer.json()) as T[]));
    token = answer.headers.get("X-Next-Token");
    if (!token) break;
  }
  return items;
}

const at = (id: string): string => `/sandboxes/${encodeURIComponent(id)}`;

export const sandboxes = {
  list: (signal?: AbortSignal) => all<Sandbox>("/v2/sandboxes", signal),
  get: (id: string, signal?: AbortSignal) => json<SandboxDetail>(at(id), { signal }),
  create: (spec: NewSandbox) => json<Created>("/v2/sandboxes", { method: "POST", json: spec }),
  kill: (id: string) => request(at(id), { method: "DELETE" }),
  pause: (id: string) => request(`${at(id)}/pause`, { method: "POST" }),
  wake: (id: string, timeout: number) => json<Created>(`/v2${at(id)}/connect`, { method: "POST", json: { timeout } }),
  fork: (id: string, count: number, timeout: number) => json<ForkResult[]>(`${at(id)}/fork`, { method: "POST", json: { count, timeout } }),
  setTimeout: (id: string, timeout: number) => request(`${at(id)}/timeout`, { method: "POST", json: { timeout } }),
  snapshot: (id: string, name: string) =>
    json<{ snapshotID: string; names: string[] }>(`${at(id)}/snapshots`, { method: "POST", json: name === "" ? {} : { name } }),
  /** Seconds since 1970. */
  metrics: (id: string, start: number, end: number, signal?: AbortSignal) => json<Metric[]>(`${at(id)}/metrics?start=${start}&end=${end}`, { signal }),
  logs: async (id: string, query: { cursor?: number; direction?: "forward" | "backward"; limit?: number }, signal?: AbortSignal) => {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) search.set(name, String(value));
    return (await json<{ logs: LogEntry[] }>(`/v2${at(id)}/logs?${search}`, { signal })).logs;
  },
};

export const templates = {
  list: (signal?: AbortSignal) => all<Template>("/v2/templates", signal),
  remove: (id: string) => request(`/templates/${encodeURIComponent(id)}`, { method: "DELETE" }),
};
