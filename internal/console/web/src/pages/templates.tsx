import { useState } from "preact/hooks";
import { templates } from "../api/platform.ts";
import type { Template } from "../api/platform.ts";
import { to } from "../route.ts";
import { Dialog } from "../ui/dialog.tsx";
import { moment, short } from "../ui/format.ts";
import { useNotices } from "../ui/notices.tsx";
import { Heading, Missing, Stale } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";
import { CreateDialog, nameOf } from "./create.tsx";

/** How many sandboxes there are of a template, were, and wait to be. */
function use(t: Template): string {
  const { forks = 0, pool = 0, poolSize = 0 } = t.spore ?? {};
  return `${forks} now, ${t.spawnCount} ever${poolSize > 0 ? `, ${pool} of ${poolSize} waiting` : ""}`;
}

export function TemplatesPage() {
  const list = usePoll("templates", (signal) => templates.list(signal), 10_000);
  const [from, setFrom] = useState<Template>();
  const [doomed, setDoomed] = useState<Template>();
  const notices = useNotices();
  return (
    <>
      <div class="head">
        <Heading>Templates</Heading>
      </div>
      {list.data && <Stale error={list.error} />}
      {!list.data ? (
        <Missing error={list.error} />
      ) : list.data.length === 0 ? (
        <Missing>
          There is no template yet. Make one with <code>spore create</code>, or take a snapshot of a sandbox.
        </Missing>
      ) : (
        <table role="table" class="cards">
          <caption class="hidden">Templates</caption>
          <thead role="rowgroup">
            <tr role="row">
              {["Template", "Id", "Size", "Made", "Sandboxes", "Actions"].map((name) => (
                <th key={name} role="columnheader" scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody role="rowgroup">
            {list.data.map((t) => (
              <tr key={t.templateID} role="row">
                <th role="rowheader" scope="row">
                  {t.names.length > 0 ? t.names.join(", ") : "without a name"}
                </th>
                <td role="cell" data-label="Id">
                  <a href={to.snapshot(t.templateID)} title={t.templateID}>
                    <code>{short(t.templateID)}</code>
                  </a>
                </td>
                <td role="cell" data-label="Size">
                  {t.cpuCount} CPU, {t.memoryMB} MiB, disk {t.diskSizeMB} MiB
                </td>
                <td role="cell" data-label="Made">
                  {moment(t.createdAt)}
                </td>
                <td role="cell" data-label="Sandboxes">
                  {use(t)}
                </td>
                <td role="cell" class="wide">
                  <div class="row actions" role="group" aria-label={`What to do with template ${nameOf(t)}`}>
                    <button type="button" aria-haspopup="dialog" aria-label={`New sandbox from ${nameOf(t)}`} onClick={() => setFrom(t)}>
                      New sandbox
                    </button>
                    <a class="button" href={to.tree(t.templateID)} aria-label={`Show ${nameOf(t)} in the tree`}>
                      Tree
                    </a>
                    <button type="button" aria-haspopup="dialog" aria-label={`Delete template ${nameOf(t)}`} onClick={() => setDoomed(t)}>
                      Delete
                    </button>
                  </div>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {from && <CreateDialog template={nameOf(from)} onDone={() => undefined} onClose={() => setFrom(undefined)} />}
      {doomed && (
        <Dialog
          title={`Delete template ${nameOf(doomed)}?`}
          action="Delete it"
          danger
          onClose={() => setDoomed(undefined)}
          onAct={async () => {
            await templates.remove(doomed.templateID);
            notices.tell(`Template ${nameOf(doomed)} is deleted`);
            await list.refresh();
          }}
        >
          <p>No sandbox can be made from it afterwards. One that sandboxes stand on is not deleted.</p>
        </Dialog>
      )}
    </>
  );
}
