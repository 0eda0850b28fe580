// One way out of the page: requests to the origin that it came from, with the key that the user gave.

/** An answer of 400 and above, or none. */
export class ApiError extends Error {
  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** Seconds after which it may go better, where the server says so. */
  readonly retryAfter: number | undefined;

  constructor(status: number, message: string, retryAfter?: number) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const keyName = "spore.key";

/** The API key, kept as long as this tab. */
export const key = {
  get: (): string | null => sessionStorage.getItem(keyName),
  set: (value: string): void => sessionStorage.setItem(keyName, value),
  forget: (): void => sessionStorage.removeItem(keyName),
};

const refused = new Set<() => void>();

/** Calls back whenever the server refuses the key. Returns how to stop. */
export function onRefused(callback: () => void): () => void {
  refused.add(callback);
  return () => refused.delete(callback);
}

export interface RequestOptions {
  method?: string;
  json?: unknown;
  body?: BodyInit;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

/** Sends a request and returns its answer, if that is below 400. Else throws an ApiError, or an AbortError. */
export async function request(path: string, o: RequestOptions = {}): Promise<Response> {
  const headers = new Headers(o.headers);
  const secret = key.get();
  if (secret !== null) headers.set("X-API-Key", secret);
  const init: RequestInit = { method: o.method ?? "GET", headers, credentials: "omit", cache: "no-store" };
  if (o.json !== undefined) {
    headers.set("Content-Type", "application/json");
    init.body = JSON.stringify(o.json);
  } else if (o.body !== undefined) {
    init.body = o.body;
  }
  if (o.signal) init.signal = o.signal;
  let answer: Response;
  try {
    answer = await fetch(path, init);
  } catch (err) {
    if (err instanceof DOMException && err.name === "AbortError") throw err;
    throw new ApiError(0, "spore does not answer. Is the daemon running?");
  }
  if (answer.ok) return answer;
  const error = await errorOf(answer);
  if (answer.status === 401 && !headers.has("E2b-Sandbox-Id")) for (const callback of refused) callback();
  throw error;
}

/** Reads what an answer of 400 and above says: {code, message, hint?}, as the API and the guest's agent write it. */
async function errorOf(answer: Response): Promise<ApiError> {
  let message = `${answer.status} ${answer.statusText}`.trim();
  try {
    const body: unknown = await answer.json();
    if (typeof body === "object" && body !== null) {
      const { message: said, hint } = body as { message?: unknown; hint?: unknown };
      if (typeof said === "string" && said !== "") message = said;
      if (typeof hint === "string" && hint !== "" && !message.includes(hint)) message += `: ${hint}`;
    }
  } catch {
    // Whoever answered was not the API. Its status must do.
  }
  const retry = Number(answer.headers.get("Retry-After") ?? NaN);
  return new ApiError(answer.status, message, Number.isFinite(retry) ? retry : undefined);
}

/** The same for an answer in JSON. */
export async function json<T>(path: string, o: RequestOptions = {}): Promise<T> {
  return (await (await request(path, o)).json()) as T;
}
