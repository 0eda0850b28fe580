import type { ComponentChildren } from "preact";
import { ApiError } from "../api/http.ts";
import { reason } from "./format.ts";

/** A state in words, with a dot in its colour. */
export function Badge({ state }: { state: string }) {
  return (
    <span class={`badge ${state}`}>
      <span class="dot" aria-hidden="true" />
      {state}
    </span>
  );
}

/** What stands where something is missing: because it has not come yet, because it failed, or because there is nothing. */
export function Missing({ error, children }: { error?: unknown; children?: ComponentChildren }) {
  if (error === undefined) return <p class="missing">{children ?? "One moment…"}</p>;
  return (
    <p class="missing error" role="alert">
      {error instanceof ApiError && error.status === 404 ? "This does not exist, or not any more. " : ""}
      {reason(error)}
    </p>
  );
}

/** A warning above what was last known, when it can not be asked anew. */
export function Stale({ error }: { error: unknown }) {
  if (error === undefined) return null;
  return (
    <p class="stale" role="alert">
      Not up to date: {reason(error)}
    </p>
  );
}

export function Id({ id }: { id: string }) {
  return (
    <code class="id" title={id}>
      {id.slice(0, 8)}
    </code>
  );
}

/** What is known of something: names and values. */
export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A heading that takes the focus when its page is entered. */
export function Heading({ children }: { children: ComponentChildren }) {
  return (
    <h1 tabindex={-1} data-heading>
      {children}
    </h1>
  );
}
