import { Fragment } from "preact";
import { useRef, useState } from "preact/hooks";
import { ApiError } from "../api/http.ts";
import type { FileEntry, Guest } from "../api/guest.ts";
import { to } from "../route.ts";
import { Dialog, Field } from "../ui/dialog.tsx";
import { bytes, moment, plural } from "../ui/format.ts";
import { useNotices } from "../ui/notices.tsx";
import { badName, crumbs, join, parent } from "../ui/paths.ts";
import { Missing, Stale } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";
import { View } from "./view.tsx";

interface Props {
  id: string;
  guest: Guest;
  running: boolean;
  path: string;
  /** Whether any request wakes it once it sleeps. Then only a person's requests are sent. */
  light: boolean;
}

export function FilesTab(props: Props) {
  if (!props.running) return <Missing>The sandbox is paused. Wake it to see its files.</Missing>;
  return <Browser {...props} />;
}

type Question = { kind: "folder" } | { kind: "rename" | "delete"; entry: FileEntry };

const never = 2 ** 31 - 1;

/** Most entries that are drawn. */
const page = 500;

const isDir = (e: FileEntry): boolean => e.type === "FILE_TYPE_DIRECTORY";

function Browser({ id, guest, path, light }: Props) {
  const list = usePoll(`files ${id} ${path}`, async (signal) => sorted(await guest.list(path, signal)), light ? never : 5000);
  const [asked, setAsked] = useState<Question>();
  const [viewed, setViewed] = useState<FileEntry>();
  const [over, setOver] = useState(false);
  const [uploading, setUploading] = useState("");
  const [most, setMost] = useState(page);
  const picker = useRef<HTMLInputElement>(null);
  const notices = useNotices();

  const upload = async (files: File[]): Promise<void> => {
    for (const [i, file] of files.entries()) {
      setUploading(`Uploading ${file.name} (${bytes(file.size)}${files.length > 1 ? `, ${i + 1} of ${files.length}` : ""})…`);
      try {
        await guest.write(join(path, file.name), file);
        notices.tell(`${file.name} is uploaded`);
      } catch (err) {
        notices.complain(`Uploading ${file.name}`, err);
      }
    }
    setUploading("");
    await list.refresh();
  };
  const download = async (entry: FileEntry): Promise<void> => {
    try {
      const content = await (await guest.read(entry.path)).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(content);
      link.download = entry.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (err) {
      notices.complain(`Downloading ${entry.name}`, err);
    }
  };
  return (
    <section
      aria-label="Files"
      class={over ? "files over" : "files"}
      onDragOver={(e) => {
        e.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(e) => {
        e.preventDefault();
        setOver(false);
        void upload([...(e.dataTransfer?.files ?? [])]);
      }}
    >
      <div class="row toolbar">
        <nav class="crumbs" aria-label="Path">
          {crumbs(path).map(([name, at], i) => (
            <Fragment key={at}>
              {i > 1 && <span aria-hidden="true">/</span>}
              <a href={to.files(id, at)} aria-current={at === path ? "page" : undefined}>
                {name}
              </a>
            </Fragment>
          ))}
        </nav>
        <div class="row">
          <button type="button" aria-haspopup="dialog" onClick={() => setAsked({ kind: "folder" })}>
            New folder
          </button>
          <button type="button" onClick={() => picker.current?.click()}>
            Upload
          </button>
          <input
            ref={picker}
            type="file"
            multiple
            hidden
            aria-label="Files to upload"
            onChange={(e) => {
              const files = [...(e.currentTarget.files ?? [])];
              e.currentTarget.value = "";
              void upload(files);
            }}
          />
        </div>
      </div>
      <p role="status" class="dim">
        {uploading}
      </p>
      {list.data && <Stale error={list.error} />}
      {!list.data ? (
        <Missing error={list.error instanceof ApiError && list.error.status === 404 ? new Error(`There is no folder ${path}.`) : list.error} />
      ) : (
        <table role="table" class="listing">
          <caption class="hidden">
            {path}: {plural(list.data.length, "entry", "entries")}
          </caption>
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader" scope="col">
                Name
              </th>
              <th role="columnheader" scope="col" class="number">
                Size
              </th>
              <th role="columnheader" scope="col" class="roomy">
                Changed
              </th>
              <th role="columnheader" scope="col" class="roomy">
                Owner
              </th>
              <th role="columnheader" scope="col" class="roomy">
                Mode
              </th>
              <th role="columnheader" scope="col">
                Actions
              </th>
            </tr>
          </thead>
          <tbody role="rowgroup">
            {path !== "/" && (
              <tr role="row">
                <td role="cell">
                  <a href={to.files(id, parent(path))} aria-label="The folder above">
                    ..
                  </a>
                </td>
                <td role="cell" />
                <td role="cell" class="roomy" />
                <td role="cell" class="roomy" />
                <td role="cell" class="roomy" />
                <td role="cell" />
              </tr>
            )}
            {list.data.slice(0, most).map((e) => (
              <tr key={e.path} role="row">
                <th role="rowheader" scope="row">
                  {isDir(e) ? (
                    <a href={to.files(id, join(path, e.name))}>{e.name}/</a>
                  ) : (
                    <button type="button" class="link" aria-haspopup="dialog" onClick={() => setViewed(e)}>
                      {e.name}
                    </button>
                  )}
                  {e.symlinkTarget !== undefined && <span class="dim"> → {e.symlinkTarget}</span>}
                </th>
                <td role="cell" class="number">
                  {isDir(e) ? "" : bytes(Number(e.size ?? 0))}
                </td>
                <td role="cell" class="roomy">
                  {e.modifiedTime ? moment(e.modifiedTime) : ""}
                </td>
                <td role="cell" class="roomy">
                  {e.owner}
                </td>
                <td role="cell" class="roomy">
                  <code>{e.permissions}</code>
                </td>
                <td role="cell">
                  <div class="row actions">
                    {!isDir(e) && (
                      <button type="button" aria-label={`Download ${e.name}`} onClick={() => void download(e)}>
                        Download
                      </button>
                    )}
                    <button type="button" aria-haspopup="dialog" aria-label={`Rename ${e.name}`} onClick={() => setAsked({ kind: "rename", entry: e })}>
                      Rename
                    </button>
                    <button type="button" aria-haspopup="dialog" aria-label={`Delete ${e.name}`} onClick={() => setAsked({ kind: "delete", entry: e })}>
                      Delete
                    </button>
                  </div>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {list.data && list.data.length > most && (
        <button type="button" onClick={() => setMost(most + page)}>
          Show more of {list.data.length}
        </button>
      )}
      {viewed && <View guest={guest} entry={viewed} onDownload={() => download(viewed)} onClose={() => setViewed(undefined)} />}
      {asked && <Ask question={asked} guest={guest} path={path} onDone={list.refresh} onClose={() => setAsked(undefined)} />}
    </section>
  );
}

interface AskProps {
  question: Question;
  guest: Guest;
  path: string;
  onDone: () => Promise<void>;
  onClose: () => void;
}

function Ask({ question, guest, path, onDone, onClose }: AskProps) {
  const [name, setName] = useState(question.kind === "rename" ? question.entry.name : "");
  const notices = useNotices();
  if (question.kind === "delete") {
    const { entry } = question;
    return (
      <Dialog
        title={`Delete ${entry.name}?`}
        action="Delete it"
        danger
        onClose={onClose}
        onAct={async () => {
          await guest.remove(join(path, entry.name));
          notices.tell(`${entry.name} is deleted`);
          await onDone();
        }}
      >
        <p>{isDir(entry) ? "The folder and all that is in it are lost." : "The file is lost."}</p>
      </Dialog>
    );
  }
  return (
    <Dialog
      title={question.kind === "folder" ? "New folder" : `Rename ${question.entry.name}`}
      action={question.kind === "folder" ? "Make it" : "Rename"}
      onClose={onClose}
      onAct={async () => {
        const bad = badName(name);
        if (bad) throw new Error(bad);
        if (question.kind === "folder") await guest.makeDir(join(path, name));
        else if (name !== question.entry.name) await guest.move(join(path, question.entry.name), join(path, name));
        notices.tell(question.kind === "folder" ? `Folder ${name} is made` : `${question.entry.name} is now ${name}`);
        await onDone();
      }}
    >
      <Field label="Name">{(field) => <input id={field} required autocomplete="off" spellcheck={false} value={name} onInput={(e) => setName(e.currentTarget.value)} />}</Field>
    </Dialog>
  );
}

function sorted(entries: FileEntry[]): FileEntry[] {
  return [...entries].sort((a, b) => Number(isDir(b)) - Number(isDir(a)) || a.name.localeCompare(b.name));
}
