import { useState } from "preact/hooks";
import { sandboxes } from "../api/platform.ts";
import type { Sandbox } from "../api/platform.ts";
import { to } from "../route.ts";
import { moment, plural, seconds, short, span } from "../ui/format.ts";
import { Badge, Heading, Missing, Stale } from "../ui/states.tsx";
import { useNow, usePoll } from "../ui/use.ts";
import { Actions } from "./actions.tsx";
import { CreateDialog } from "./create.tsx";

export function SandboxesPage() {
  const list = usePoll("sandboxes", (signal) => sandboxes.list(signal), 2000);
  const [creating, setCreating] = useState(false);
  const [filter, setFilter] = useState("");
  const shown = list.data?.filter((s) => matches(s, filter.trim().toLowerCase()));
  return (
    <>
      <div class="head">
        <Heading>Sandboxes</Heading>
        <button type="button" class="primary" aria-haspopup="dialog" onClick={() => setCreating(true)}>
          New sandbox
        </button>
      </div>
      {list.data && <Stale error={list.error} />}
      {!list.data ? (
        <Missing error={list.error} />
      ) : list.data.length === 0 ? (
        <Missing>No sandbox runs or sleeps here. Make one from a template.</Missing>
      ) : (
        <>
          <div class="row toolbar">
            <input type="search" class="search" aria-label="Filter sandboxes" placeholder="Filter by id, template, state, metadata" value={filter} onInput={(e) => setFilter(e.currentTarget.value)} />
            <span class="dim" role="status">
              {summary(list.data, shown!)}
            </span>
          </div>
          <Table list={shown!} refresh={list.refresh} />
        </>
      )}
      {creating && <CreateDialog onDone={() => void list.refresh()} onClose={() => setCreating(false)} />}
    </>
  );
}

function matches(s: Sandbox, filter: string): boolean {
  const words = [s.sandboxID, s.alias ?? "", s.templateID, s.state, ...Object.entries(s.metadata ?? {}).map(([k, v]) => `${k}=${v}`)];
  return filter === "" || words.some((w) => w.toLowerCase().includes(filter));
}

function summary(all: Sandbox[], shown: Sandbox[]): string {
  if (shown.length < all.length) return `${shown.length} of ${all.length}`;
  const running = all.filter((s) => s.state === "running").length;
  return `${running} running, ${plural(all.length - running, "paused", "paused")}`;
}

/** Most rows that are drawn at first, and with each wish for more. */
const page = 200;

function Table({ list, refresh }: { list: Sandbox[]; refresh: () => Promise<void> }) {
  const now = useNow();
  const [most, setMost] = useState(page);
  // Roles are said outright, since browsers forget those of a table that is laid out as cards on a phone.
  return (
    <>
      <table role="table" class="cards live">
        <caption class="hidden">Sandboxes</caption>
        <thead role="rowgroup">
          <tr role="row">
            {["Sandbox", "State", "Template", "Size", "Age", "Time left", "Actions"].map((name) => (
              <th key={name} role="columnheader" scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {list.slice(0, most).map((s) => (
            <tr key={s.sandboxID} role="row">
              <th role="rowheader" scope="row">
                <a href={to.sandbox(s.sandboxID)} title={s.sandboxID}>
                  <code>{short(s.sandboxID)}</code>
                </a>
                <Metadata of={s} />
              </th>
              <td role="cell" data-label="State">
                <Badge state={s.state} />
              </td>
              <td role="cell" data-label="Template">
                <a href={to.tree(s.templateID)}>{s.alias ?? <code>{short(s.templateID)}</code>}</a>
              </td>
              <td role="cell" data-label="Size">
                {s.cpuCount} CPU, {s.memoryMB} MiB
              </td>
              <td role="cell" data-label="Age" title={moment(s.startedAt)}>
                {span(seconds(s.startedAt, now))}
              </td>
              <td role="cell" data-label="Time left" title={s.state === "running" ? moment(s.endAt) : undefined}>
                {s.state === "running" ? span(seconds(now, s.endAt)) : "—"}
              </td>
              <td role="cell" class="wide">
                <Actions id={s.sandboxID} state={s.state} onDone={refresh} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {list.length > most && (
        <button type="button" onClick={() => setMost(most + page)}>
          Show more of {list.length}
        </button>
      )}
    </>
  );
}

function Metadata({ of }: { of: Sandbox }) {
  const pairs = Object.entries(of.metadata ?? {});
  if (pairs.length === 0) return null;
  return (
    <span class="tags">
      {pairs.slice(0, 4).map(([name, value]) => (
        <span key={name} class="tag" title={`${name}=${value}`}>
          {name}={value}
        </span>
      ))}
    </span>
  );
}
