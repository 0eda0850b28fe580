import { useState } from "preact/hooks";
import { sandboxes, templates } from "../api/platform.ts";
import type { Template } from "../api/platform.ts";
import { to } from "../route.ts";
import { Dialog, Field, NumberField } from "../ui/dialog.tsx";
import { short } from "../ui/format.ts";
import { useNotices } from "../ui/notices.tsx";
import { usePoll } from "../ui/use.ts";

export const defaultMinutes = 15;
export const mostMinutes = 24 * 60;

interface Props {
  /** Name or id that is chosen from the start. */
  template?: string;
  onDone: () => void;
  onClose: () => void;
}

/** Makes a sandbox of a template, and goes there. */
export function CreateDialog({ template, onDone, onClose }: Props) {
  const list = usePoll("templates", (signal) => templates.list(signal), 30_000);
  const [chosen, setChosen] = useState(template ?? "");
  const [minutes, setMinutes] = useState(defaultMinutes);
  const [then, setThen] = useState<"kill" | "pause">("kill");
  const [resume, setResume] = useState(false);
  const [metadata, setMetadata] = useState("");
  const notices = useNotices();
  return (
    <Dialog
      title="New sandbox"
      action="Create"
      onClose={onClose}
      onAct={async () => {
        const made = await sandboxes.create({
          templateID: chosen,
          timeout: minutes * 60,
          autoPause: then === "pause",
          ...(then === "pause" && resume && { autoResume: { enabled: true } }),
          metadata: pairs(metadata),
        });
        notices.tell(`Sandbox ${short(made.sandboxID)} runs`);
        onDone();
        location.hash = to.sandbox(made.sandboxID);
      }}
    >
      <Field label="Template" hint="A name, or the id of a snapshot.">
        {(id, described) => (
          <>
            <input id={id} list={`${id}-names`} required autocomplete="off" aria-describedby={described} value={chosen} onInput={(e) => setChosen(e.currentTarget.value)} />
            <datalist id={`${id}-names`}>
              {list.data?.map((t) => (
                <option key={t.templateID} value={nameOf(t)}>
                  {`${t.cpuCount} CPU, ${t.memoryMB} MiB`}
                </option>
              ))}
            </datalist>
          </>
        )}
      </Field>
      <div class="pair">
        <NumberField label="Minutes to live" value={minutes} min={1} max={mostMinutes} onValue={setMinutes} />
        <Field label="After that">
          {(id) => (
            <select id={id} value={then} onChange={(e) => setThen(e.currentTarget.value as "kill" | "pause")}>
              <option value="kill">kill it</option>
              <option value="pause">pause it</option>
            </select>
          )}
        </Field>
      </div>
      {then === "pause" && (
        <label class="check">
          <input type="checkbox" checked={resume} onChange={(e) => setResume(e.currentTarget.checked)} />
          Wake it at the first request
        </label>
      )}
      <Field label="Metadata" hint="Optional: name=value, one a line.">
        {(id, described) => <textarea id={id} rows={2} aria-describedby={described} value={metadata} onInput={(e) => setMetadata(e.currentTarget.value)} />}
      </Field>
    </Dialog>
  );
}

export function nameOf(t: Template): string {
  return t.names[0] ?? t.templateID;
}

function pairs(text: string): Record<string, string> {
  const out: Record<string, string> = {};
  for (const line of text.split("\n")) {
    const at = line.indexOf("=");
    if (at > 0) out[line.slice(0, at).trim()] = line.slice(at + 1).trim();
    else if (line.trim() !== "") throw new Error(`"${line.trim()}" is not of the form name=value`);
  }
  return out;
}
