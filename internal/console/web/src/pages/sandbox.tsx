import { useMemo, useState } from "preact/hooks";
import { Guest } from "../api/guest.ts";
import { sandboxes } from "../api/platform.ts";
import type { SandboxDetail } from "../api/platform.ts";
import { tabs, to } from "../route.ts";
import type { Tab } from "../route.ts";
import { moment, seconds, short, span } from "../ui/format.ts";
import { Badge, Facts, Heading, Missing, Stale } from "../ui/states.tsx";
import { useNow, usePoll } from "../ui/use.ts";
import { Actions } from "./actions.tsx";
import { FilesTab } from "./files.tsx";
import { LogsTab } from "./logs.tsx";
import { MetricsTab } from "./metrics.tsx";
import { TerminalTab } from "./terminal.tsx";

const names: Record<Tab, string> = { terminal: "Terminal", files: "Files", metrics: "Metrics", logs: "Logs" };

export function SandboxPage({ id, tab, path }: { id: string; tab: Tab; path: string | undefined }) {
  const { data: s, error, refresh } = usePoll(`sandbox ${id}`, (signal) => sandboxes.get(id, signal), 2000);
  const [opened, setOpened] = useState(tab === "terminal");
  const token = s?.envdAccessToken;
  const guest = useMemo(() => new Guest(id, token), [id, token]);
  if (tab === "terminal" && !opened) setOpened(true);
  const running = s?.state === "running";
  return (
    <>
      <div class="head">
        <Heading>
          Sandbox <code title={id}>{short(id)}</code>
        </Heading>
        {s && <Badge state={s.state} />}
        {s && (
          <Actions
            id={id}
            state={s.state}
            onDone={refresh}
            onKilled={() => {
              location.hash = to.sandboxes;
            }}
          />
        )}
      </div>
      {!s ? (
        <Missing error={error} />
      ) : (
        <>
          <Stale error={error} />
          <SandboxFacts s={s} />
          <nav class="tabs" aria-label="Of this sandbox">
            {tabs.map((t) => (
              <a key={t} href={to.sandbox(id, t)} aria-current={t === tab ? "page" : undefined}>
                {names[t]}
              </a>
            ))}
          </nav>
          {opened && (
            <section aria-label="Terminal" hidden={tab !== "terminal"}>
              <TerminalTab id={id} guest={guest} running={running} />
            </section>
          )}
          {tab === "files" && <FilesTab id={id} guest={guest} running={running} path={path ?? "/"} light={s.lifecycle?.autoResume === true} />}
          {tab === "metrics" && <MetricsTab id={id} running={running} />}
          {tab === "logs" && <LogsTab id={id} />}
        </>
      )}
    </>
  );
}

function SandboxFacts({ s }: { s: SandboxDetail }) {
  const now = useNow();
  const { parent, wakeMs, pooled } = s.spore;
  const facts: [string, preact.ComponentChildren][] = [
    ["Template", <a href={to.tree(s.templateID)}>{s.alias ?? <code>{short(s.templateID)}</code>}</a>],
    ["Size", `${s.cpuCount} CPU, ${s.memoryMB} MiB, disk ${s.diskSizeMB} MiB`],
    ["Started", moment(s.startedAt)],
    ["Time left", s.state === "running" ? `${span(seconds(now, s.endAt))}, then ${s.lifecycle?.onTimeout ?? "kill"}` : "—"],
    ...(parent ? [["Forked from", <a href={to.sandbox(parent)}><code>{short(parent)}</code></a>] as [string, preact.ComponentChildren]] : []),
    ...(wakeMs ? [["Last wake", `${wakeMs.toFixed(wakeMs < 10 ? 1 : 0)} ms${pooled ? ", from a pool" : ""}`] as [string, string]] : []),
    ...Object.entries(s.metadata ?? {}).map(([name, value]): [string, string] => [name, value]),
  ];
  return <Facts facts={facts} />;
}
