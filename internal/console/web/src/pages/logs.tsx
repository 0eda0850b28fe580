import { useState } from "preact/hooks";
import { sandboxes } from "../api/platform.ts";
import type { Level, LogEntry } from "../api/platform.ts";
import { Field } from "../ui/dialog.tsx";
import { moment } from "../ui/format.ts";
import { Missing, Stale } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";

const levels: readonly Level[] = ["debug", "info", "warn", "error"];

/** What has happened to a sandbox, youngest first. */
export function LogsTab({ id }: { id: string }) {
  const [level, setLevel] = useState<Level>("info");
  const [text, setText] = useState("");
  const logs = usePoll(`logs ${id}`, (signal) => sandboxes.logs(id, { direction: "backward", limit: 500 }, signal), 3000);
  const shown = logs.data?.filter((e) => levels.indexOf(e.level) >= levels.indexOf(level) && has(e, text.toLowerCase()));
  return (
    <section aria-label="Logs">
      <div class="row toolbar">
        <input type="search" class="search" aria-label="Filter the log" placeholder="Filter" value={text} onInput={(e) => setText(e.currentTarget.value)} />
        <Field label="At least">
          {(field) => (
            <select id={field} value={level} onChange={(e) => setLevel(e.currentTarget.value as Level)}>
              {levels.map((l) => (
                <option key={l}>{l}</option>
              ))}
            </select>
          )}
        </Field>
      </div>
      {logs.data && <Stale error={logs.error} />}
      {!shown ? (
        <Missing error={logs.error} />
      ) : shown.length === 0 ? (
        <Missing>Nothing to tell.</Missing>
      ) : (
        <ol class="log" aria-label="Log, youngest first">
          {shown.map((e, i) => (
            <li key={`${e.timestamp} ${i}`} class={e.level}>
              <time dateTime={e.timestamp}>{moment(e.timestamp)}</time>
              <span class="level">{e.level}</span>
              <span class="message">
                {e.message}
                {Object.entries(e.fields ?? {}).map(([name, value]) => (
                  <span key={name} class="pair-of">
                    {" "}
                    {name}={value}
                  </span>
                ))}
              </span>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}

function has(e: LogEntry, text: string): boolean {
  return text === "" || [e.message, ...Object.entries(e.fields ?? {}).map(([k, v]) => `${k}=${v}`)].some((s) => s.toLowerCase().includes(text));
}
