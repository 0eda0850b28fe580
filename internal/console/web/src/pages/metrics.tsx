import { useState } from "preact/hooks";
import { sandboxes } from "../api/platform.ts";
import { Chart } from "../ui/chart.tsx";
import { Field } from "../ui/dialog.tsx";
import { bytes, percent } from "../ui/format.ts";
import { Missing, Stale } from "../ui/states.tsx";
import { usePoll } from "../ui/use.ts";

const spans: [number, string][] = [
  [5, "5 minutes"],
  [15, "15 minutes"],
  [60, "hour"],
  [360, "6 hours"],
];

export function MetricsTab({ id, running }: { id: string; running: boolean }) {
  const [minutes, setMinutes] = useState(5);
  const metrics = usePoll(
    `metrics ${id} ${minutes}`,
    async (signal) => {
      const end = Math.ceil(Date.now() / 1000);
      const start = end - minutes * 60;
      const rows = await sandboxes.metrics(id, start, end, signal);
      return { start, end, rows: rows.map((m) => ({ ...m, at: m.timestampUnix || Date.parse(m.timestamp ?? "") / 1000 })).sort((a, b) => a.at - b.at) };
    },
    5000,
  );
  if (!metrics.data) return <Missing error={metrics.error} />;
  const { start, end, rows } = metrics.data;
  const last = rows[rows.length - 1];
  const line = (name: string, style: string, of: (m: (typeof rows)[number]) => number) => ({ name, style, points: rows.map((m): [number, number] => [m.at, of(m)]) });
  return (
    <section aria-label="Metrics">
      <div class="row toolbar">
        <Field label="The last">
          {(field) => (
            <select id={field} value={minutes} onChange={(e) => setMinutes(Number(e.currentTarget.value))}>
              {spans.map(([n, name]) => (
                <option key={n} value={n}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
      </div>
      <Stale error={metrics.error} />
      {!last ? (
        <Missing>{running ? "Nothing has been measured yet." : "It sleeps, and nothing was measured in this time."}</Missing>
      ) : (
        <div class="charts">
          <Chart title={`CPU, of ${last.cpuCount}`} start={start} end={end} top={Math.max(100, ...rows.map((m) => m.cpuUsedPct))} format={percent} lines={[line("used", "one", (m) => m.cpuUsedPct)]} />
          <Chart
            title="Memory"
            start={start}
            end={end}
            top={Math.max(...rows.map((m) => m.memTotal))}
            format={bytes}
            lines={[line("used", "one", (m) => m.memUsed), ...(last.memCache === undefined ? [] : [line("cache", "two", (m) => m.memCache ?? 0)])]}
          />
          <Chart title="Disk" start={start} end={end} top={Math.max(...rows.map((m) => m.diskTotal))} format={bytes} lines={[line("used", "one", (m) => m.diskUsed)]} />
        </div>
      )}
    </section>
  );
}
