// The agent inside a sandbox, reached through the daemon: Connect calls in JSON, and plain HTTP for the contents of files.

import { endOfStream, Opener, seal } from "./envelope.ts";
import { ApiError, request } from "./http.ts";

const agentPort = "49983";

export interface FileEntry {
  name: string;
  type?: "FILE_TYPE_FILE" | "FILE_TYPE_DIRECTORY" | "FILE_TYPE_SYMLINK";
  path: string;
  size?: string; // an int64, and absent when 0
  mode?: number;
  permissions?: string;
  owner?: string;
  group?: string;
  modifiedTime?: string;
  symlinkTarget?: string;
}

export type Selector = { pid: number } | { tag: string };

export interface Size {
  cols: number;
  rows: number;
}

export interface ProcessEvent {
  start?: { pid: number };
  data?: { stdout?: string; stderr?: string; pty?: string }; // base64
  end?: { exitCode?: number; exited?: boolean; status?: string; error?: string };
  keepalive?: object;
}

export interface ProcessInfo {
  pid: number;
  tag?: string;
  config: { cmd: string };
}

/** The agent of one sandbox. */
export class Guest {
  private readonly headers: Record<string, string>;

  constructor(sandbox: string, token: string | undefined) {
    this.headers = { "E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": agentPort };
    if (token) this.headers["X-Access-Token"] = token;
  }

  private async unary<T>(method: string, message: unknown, signal?: AbortSignal): Promise<T> {
    const headers = { ...this.headers, "Connect-Protocol-Version": "1" };
    const answer = await request(`/${method}`, { method: "POST", json: message, headers, signal });
    return (await answer.json()) as T;
  }

  private async *stream<T>(method: string, message: unknown, signal: AbortSignal): AsyncGenerator<T> {
    const headers = { ...this.headers, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", "Keepalive-Ping-Interval": "20" };
    const answer = await request(`/${method}`, { method: "POST", body: seal(message), headers, signal });
    const reader = answer.body!.getReader();
    const opener = new Opener();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) throw new ApiError(0, "the connection to the sandbox broke off");
        for (const { flags, message } of opener.push(value)) {
          if ((flags & endOfStream) === 0) {
            yield JSON.parse(message) as T;
            continue;
          }
          const { error } = JSON.parse(message) as { error?: { code?: string; message?: string } };
          if (error) throw new ApiError(error.code === "not_found" ? 404 : 500, error.message ?? error.code ?? "the stream failed");
          return;
        }
      }
    } finally {
      // Whoever has read enough lets the connection go.
      void reader.cancel().catch(() => undefined);
    }
  }

  /** Starts a shell on a terminal of its own, which outlives this page. */
  async *shell(tag: string, size: Size, signal: AbortSignal): AsyncGenerator<ProcessEvent> {
    const process = {
      cmd: "/bin/sh",
      args: ["-c", 'exec "$(command -v bash || command -v sh)" -i -l'],
      envs: { TERM: "xterm-256color", COLORTERM: "truecolor", LANG: "C.UTF-8" },
    };
    for await (const { event } of this.stream<{ event: ProcessEvent }>("process.Process/Start", { process, pty: { size }, tag }, signal)) yield event;
  }

  /** Follows a process that runs. */
  async *follow(process: Selector, signal: AbortSignal): AsyncGenerator<ProcessEvent> {
    for await (const { event } of this.stream<{ event: ProcessEvent }>("process.Process/Connect", { process }, signal)) yield event;
  }

  async processes(signal?: AbortSignal): Promise<ProcessInfo[]> {
    return (await this.unary<{ processes?: ProcessInfo[] }>("process.Process/List", {}, signal)).processes ?? [];
  }

  input(process: Selector, bytes: Uint8Array): Promise<unknown> {
    return this.unary("process.Process/SendInput", { process, input: { pty: base64(bytes) } });
  }

  resize(process: Selector, size: Size): Promise<unknown> {
    return this.unary("process.Process/Update", { process, pty: { size } });
  }

  async list(path: string, signal?: AbortSignal): Promise<FileEntry[]> {
    return (await this.unary<{ entries?: FileEntry[] }>("filesystem.Filesystem/ListDir", { path, depth: 1 }, signal)).entries ?? [];
  }

  makeDir(path: string): Promise<unknown> {
    return this.unary("filesystem.Filesystem/MakeDir", { path });
  }

  move(source: string, destination: string): Promise<unknown> {
    return this.unary("filesystem.Filesystem/Move", { source, destination });
  }

  remove(path: string): Promise<unknown> {
    return this.unary("filesystem.Filesystem/Remove", { path });
  }

  /** The content of a file, whose body the caller reads or cancels. */
  read(path: string, signal?: AbortSignal): Promise<Response> {
    return request(`/files?${new URLSearchParams({ path })}`, { headers: this.headers, signal });
  }

  write(path: string, content: Blob, signal?: AbortSignal): Promise<unknown> {
    const headers = { ...this.headers, "Content-Type": "application/octet-stream" };
    return request(`/files?${new URLSearchParams({ path })}`, { method: "POST", body: content, headers, signal });
  }
}

/** The protocol's bytes fields are base64 in JSON. */
export function base64(bytes: Uint8Array): string {
  let text = "";
  // A call has room for a limited number of arguments.
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function unbase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}
