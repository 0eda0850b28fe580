import { useState } from "preact/hooks";
import { nameOf, spore } from "../api/spore.ts";
import type { Change, Diff, FileChange, ImageDiff } from "../api/spore.ts";
import { to } from "../route.ts";
import { bytes, percent, plural, short } from "../ui/format.ts";
import { Heading, Missing } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";

const never = 2 ** 31 - 1;

/** How one snapshot differs from another. */
export function DiffPage({ a, b }: { a: string; b: string }) {
  const diff = usePoll(`diff ${a} ${b}`, (signal) => spore.diff(a, b, signal), never);
  const tree = usePoll("tree of a diff", (signal) => spore.tree(signal), never);
  const name = (ref: string): string => {
    const found = tree.data?.find((s) => s.id === ref || s.names.includes(ref));
    return found ? nameOf(found) : short(ref);
  };
  return (
    <>
      <div class="head">
        <Heading>
          From <a href={to.snapshot(a)}>{name(a)}</a> to <a href={to.snapshot(b)}>{name(b)}</a>
        </Heading>
        <div class="row actions">
          <a class="button" href={to.diff(b, a)}>
            The other way round
          </a>
          <a class="button" href={to.tree(b)}>
            In the tree
          </a>
        </div>
      </div>
      {!diff.data ? <Missing error={diff.error}>{diff.error === undefined ? "Comparing…" : undefined}</Missing> : <Report diff={diff.data} />}
    </>
  );
}

function Report({ diff }: { diff: Diff }) {
  return (
    <>
      {diff.notes?.map((n) => (
        <p key={n} class="stale">
          Note: {n}
        </p>
      ))}
      <div class="maps">
        {diff.memory && <Regions title="Memory" image={diff.memory} />}
        {diff.disk && <Regions title="Disk" image={diff.disk} />}
      </div>
      <Files files={diff.files} />
      <section aria-labelledby="diff-processes">
        <h2 id="diff-processes">Processes</h2>
        {diff.processes.length === 0 ? (
          <p class="missing">None came and none went.</p>
        ) : (
          <ul class="changes">
            {diff.processes.map((p) => (
              <li key={`${p.change} ${p.pid}`} class={p.change}>
                <Mark change={p.change} />
                <code>{p.command}</code>
                <span class="dim">
                  pid {p.pid}, user {p.uid}
                </span>
              </li>
            ))}
          </ul>
        )}
      </section>
      {diff.metadata.length > 0 && (
        <section aria-labelledby="diff-metadata">
          <h2 id="diff-metadata">Metadata</h2>
          <ul class="changes">
            {diff.metadata.map((m) => (
              <li key={m.field} class="changed">
                <strong>{m.field}</strong>
                <code>{m.a || "nothing"}</code> → <code>{m.b || "nothing"}</code>
              </li>
            ))}
          </ul>
        </section>
      )}
    </>
  );
}

const marks: Record<Change, string> = { added: "+", removed: "−", changed: "~" };

function Mark({ change }: { change: Change }) {
  return (
    <span class="sign">
      <span aria-hidden="true">{marks[change]}</span>
      <span class="hidden">{change}</span>
    </span>
  );
}

/** Most files that are drawn at once. */
const page = 300;

function Files({ files }: { files: FileChange[] }) {
  const [filter, setFilter] = useState("");
  const [most, setMost] = useState(page);
  const chosen = files.filter((f) => f.path.includes(filter));
  const count = (change: Change): number => files.filter((f) => f.change === change).length;
  return (
    <section aria-labelledby="diff-files">
      <h2 id="diff-files">Files</h2>
      {files.length === 0 ? (
        <p class="missing">No file differs.</p>
      ) : (
        <>
          <div class="row toolbar">
            <input type="search" class="search" aria-label="Filter files by path" placeholder="Filter by path" value={filter} onInput={(e) => setFilter(e.currentTarget.value)} />
            <span class="dim" role="status">
              {count("added")} added, {count("removed")} removed, {count("changed")} changed
            </span>
          </div>
          <ul class="changes">
            {chosen.slice(0, most).map((f) => (
              <li key={f.path} class={f.change}>
                <Mark change={f.change} />
                <code class="path">{f.path}</code>
                <span class="dim">{about(f)}</span>
              </li>
            ))}
          </ul>
          {chosen.length > most && (
            <button type="button" onClick={() => setMost(most + page)}>
              Show {Math.min(page, chosen.length - most)} of {plural(chosen.length - most, "more", "more")}
            </button>
          )}
        </>
      )}
    </section>
  );
}

function about(f: FileChange): string {
  const parts = f.type === "file" ? [] : [f.type];
  if (f.what && f.what.length > 0) parts.push(f.what.join(", "));
  if (f.type === "file") parts.push(f.change === "changed" && f.size_a !== f.size_b ? `${bytes(f.size_a)} → ${bytes(f.size_b)}` : bytes(f.change === "removed" ? f.size_a : f.size_b));
  return parts.join(", ");
}

const columns = 400;

/** The stretches of an image that differ, on a line and as a list. */
function Regions({ title, image }: { title: string; image: ImageDiff }) {
  const differs = image.changed + image.zeroed;
  const largest = image.regions.slice(0, 20);
  return (
    <figure class="heat">
      <figcaption>
        <h2>{title}</h2>
        <span class="reading">
          {bytes(image.changed)} written, {bytes(image.zeroed)} zeroed: {percent((differs / (image.size || 1)) * 100)} of {bytes(image.size)}
        </span>
      </figcaption>
      <svg class="strip" viewBox={`0 0 ${columns} 24`} preserveAspectRatio="none" role="img" aria-label={`${title}: ${plural(image.regions.length, "region")} of ${bytes(image.size)} differ, ${bytes(differs)} in all`}>
        <rect class="hole" width={columns} height="24" />
        {strips(image).map(({ from, to, part }) => (
          <rect key={from} class="age0" x={from} width={to - from} height="24" opacity={0.35 + 0.65 * part} />
        ))}
      </svg>
      <details>
        <summary>{image.regions.length > largest.length ? `The ${largest.length} largest of ${image.regions.length} regions` : plural(image.regions.length, "region")}</summary>
        <table>
          <thead>
            <tr>
              <th scope="col">Offset</th>
              <th scope="col">Length</th>
            </tr>
          </thead>
          <tbody>
            {largest.map((r) => (
              <tr key={r.offset}>
                <td>
                  <code>0x{r.offset.toString(16)}</code>
                </td>
                <td>{bytes(r.length)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </figure>
  );
}

/** The line in columns, each with the part of it that differs; equal neighbours joined. */
function strips(image: ImageDiff): { from: number; to: number; part: number }[] {
  const width = image.size / columns || 1;
  const filled = new Float64Array(columns);
  for (const { offset, length } of image.regions) {
    const last = Math.min(columns - 1, Math.floor((offset + length - 1) / width));
    for (let c = Math.floor(offset / width); c <= last; c++) filled[c]! += (Math.min(offset + length, (c + 1) * width) - Math.max(offset, c * width)) / width;
  }
  const out: { from: number; to: number; part: number }[] = [];
  filled.forEach((f, c) => {
    if (f === 0) return;
    const part = Math.ceil(Math.min(1, f) * 8) / 8;
    const before = out[out.length - 1];
    if (before && before.to === c && before.part === part) before.to = c + 1;
    else out.push({ from: c, to: c + 1, part });
  });
  return out;
}
