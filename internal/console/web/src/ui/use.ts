import type { RefObject } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../api/http.ts";

export interface Polled<T> {
  data: T | undefined;
  error: unknown;
  /** Asks now; resolves when the answer is shown. */
  refresh: () => Promise<void>;
}

const slowest = 30_000;

/**
 * Asks again and again while the page is to be seen: every so many milliseconds, more rarely after errors, and at once when it is looked at again.
 * What was last known stays while there are errors. A change of key starts anew.
 */
export function usePoll<T>(key: string, ask: (signal: AbortSignal) => Promise<T>, every: number): Polled<T> {
  const [state, setState] = useState<{ key: string; data?: T; error?: unknown }>({ key });
  const latest = useRef(ask);
  latest.current = ask;
  const again = useRef<() => Promise<void>>(() => Promise.resolve());
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    let wait = every;
    let asking: Promise<void> | undefined;
    const once = async (): Promise<void> => {
      try {
        const data = await latest.current(abort.signal);
        if (abort.signal.aborted) return;
        setState({ key, data });
        wait = every;
      } catch (error) {
        if (abort.signal.aborted) return;
        setState((old) => ({ ...(old.key === key && old.data !== undefined && { data: old.data }), key, error }));
        wait = Math.min(slowest, Math.max(wait * 2, 1000 * (error instanceof ApiError ? (error.retryAfter ?? 0) : 0)));
      }
    };
    const run = (): Promise<void> => {
      clearTimeout(timer);
      asking ??= once().finally(() => {
        asking = undefined;
        if (!abort.signal.aborted && !document.hidden) timer = window.setTimeout(run, wait);
      });
      return asking;
    };
    // A request that is under way may have been answered before what the caller has just done.
    again.current = async () => {
      if (asking) await asking;
      await run();
    };
    const seen = (): void => {
      if (document.hidden) clearTimeout(timer);
      else void run();
    };
    document.addEventListener("visibilitychange", seen);
    void run();
    return () => {
      abort.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [key, every]);
  const refresh = useCallback(() => again.current(), []);
  return state.key === key ? { data: state.data, error: state.error, refresh } : { data: undefined, error: undefined, refresh };
}

/** How wide an element is, in pixels, as it changes. */
export function useWidth(element: RefObject<HTMLElement | null>, first: number): number {
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const e = element.current;
    if (!e) return;
    const observer = new ResizeObserver(() => setWidth(e.clientWidth));
    observer.observe(e);
    return () => observer.disconnect();
  }, []);
  return width;
}

/** The time, in milliseconds since 1970, every second. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
