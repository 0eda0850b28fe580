import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { FileEntry, Guest } from "../api/guest.ts";
import { bytes, reason } from "../ui/format.ts";

/** As much of a file is shown. The rest is for those who download it. */
const most = 256 << 10;

/** Of a file that is no text, as much. */
const mostHex = 2 << 10;

/** Kinds of images that browsers draw without running anything in them. */
const images: Record<string, string> = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };

/** Largest image that is drawn. */
const mostImage = 8 << 20;

type Content = { text: string; whole: boolean; binary: boolean } | { url: string } | { error: string };

interface Props {
  guest: Guest;
  entry: FileEntry;
  onDownload: () => Promise<void>;
  onClose: () => void;
}

/** Shows a file: text as text, images as images, anything else as bytes. */
export function View({ guest, entry, onDownload, onClose }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [content, setContent] = useState<Content>();
  const id = useId();
  useEffect(() => {
    const abort = new AbortController();
    let url = "";
    load(guest, entry, abort.signal).then(
      (c) => {
        if ("url" in c) url = c.url;
        if (abort.signal.aborted) URL.revokeObjectURL(url);
        else setContent(c);
      },
      (err: unknown) => {
        if (!abort.signal.aborted) setContent({ error: reason(err) });
      },
    );
    const before = document.activeElement;
    const d = dialog.current!;
    d.showModal();
    return () => {
      abort.abort();
      if (url) URL.revokeObjectURL(url);
      d.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={dialog}
      class="viewer"
      aria-labelledby={id}
      onCancel={(e) => {
        e.preventDefault();
        onClose();
      }}
    >
      <h2 id={id}>{entry.name}</h2>
      <p class="dim">
        <code class="path">{entry.path}</code>, {bytes(Number(entry.size ?? 0))}
      </p>
      <div class="content" tabindex={0} role="region" aria-label={`Content of ${entry.name}`}>
        {!content ? (
          <p>One moment…</p>
        ) : "error" in content ? (
          <p role="alert" class="error">
            {content.error}
          </p>
        ) : "url" in content ? (
          <img src={content.url} alt={entry.name} />
        ) : (
          <pre>{content.text}</pre>
        )}
      </div>
      {content && "text" in content && !content.whole && <p class="dim">Only the beginning is shown{content.binary ? ", as bytes" : ""}.</p>}
      <div class="row end">
        <button type="button" onClick={() => void onDownload()}>
          Download
        </button>
        <button type="button" class="primary" onClick={onClose}>
          Close
        </button>
      </div>
    </dialog>
  );
}

async function load(guest: Guest, entry: FileEntry, signal: AbortSignal): Promise<Content> {
  const answer = await guest.read(entry.path, signal);
  const kind = images[entry.name.split(".").pop()!.toLowerCase()];
  if (kind && Number(entry.size ?? 0) <= mostImage) {
    return { url: URL.createObjectURL(new Blob([await answer.arrayBuffer()], { type: kind })) };
  }
  const { content, whole } = await beginning(answer, most);
  try {
    if (content.subarray(0, 8192).includes(0)) throw new TypeError("a zero byte is no text");
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(content, { stream: !whole }), whole, binary: false };
  } catch {
    return { text: dump(content.subarray(0, mostHex)), whole: whole && content.length <= mostHex, binary: true };
  }
}

/** Reads at most so many bytes of an answer, and lets the rest be. */
async function beginning(answer: Response, most: number): Promise<{ content: Uint8Array; whole: boolean }> {
  const content = new Uint8Array(most);
  const reader = answer.body!.getReader();
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return { content: content.subarray(0, size), whole: true };
    const part = value.subarray(0, most - size);
    content.set(part, size);
    size += part.length;
    if (part.length < value.length) {
      await reader.cancel();
      return { content, whole: false };
    }
  }
}

/** Bytes as `hexdump -C` writes them. */
export function dump(content: Uint8Array): string {
  const lines: string[] = [];
  for (let at = 0; at < content.length; at += 16) {
    const row = [...content.subarray(at, at + 16)];
    const hex = row.map((b) => b.toString(16).padStart(2, "0")).join(" ");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.padEnd(47)}  ${row.map((b) => (b >= 32 && b < 127 ? String.fromCharCode(b) : ".")).join("")}`);
  }
  return lines.join("\n");
}
