package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/bench"
	"github.com/sporevm/spore/internal/sandbox"
)

// phasesMS are the phases of a wake in milliseconds.
type phasesMS struct {
	Open   float64 `json:"open_ms"`
	Memory float64 `json:"memory_ms"`
	Spawn  float64 `json:"spawn_ms"`
	Load   float64 `json:"load_ms"`
	Wake   float64 `json:"wake_ms"`
	Total  float64 `json:"total_ms"`
}

func inMS(p sandbox.Phases) phasesMS {
	return phasesMS{
		Open: inMillis(p.Open), Memory: inMillis(p.Memory), Spawn: inMillis(p.Spawn), Load: inMillis(p.Load), Wake: inMillis(p.Wake), Total: inMillis(p.Total),
	}
}

// inMillis is a duration in milliseconds, to the microsecond.
func inMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// phaseNames are the columns of the tables, in order of time.
var phaseNames = [...]string{"open", "memory", "spawn", "load", "wake", "total"}

func (p phasesMS) values() [len(phaseNames)]float64 {
	return [...]float64{p.Open, p.Memory, p.Spawn, p.Load, p.Wake, p.Total}
}

// spread sums up one phase over all runs, in milliseconds.
type spread struct {
	Phase  string  `json:"phase"`
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	Avg    float64 `json:"avg"`
	Max    float64 `json:"max"`
	StdDev float64 `json:"stddev"`
	P50    float64 `json:"p50"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
}

// wakeTimes is the result of resume --iterations as --json shows it.
type wakeTimes struct {
	Snapshot string     `json:"snapshot"`
	Cold     bool       `json:"cold"`
	Unit     string     `json:"unit"`
	Runs     []phasesMS `json:"runs"`
	Phases   []spread   `json:"phases"`
	Error    string     `json:"error,omitempty"` // what ended the series early
}

func summarize(runs []phasesMS) []spread {
	out := make([]spread, len(phaseNames))
	for i, name := range phaseNames {
		var s bench.Samples
		for _, r := range runs {
			s = append(s, r.values()[i])
		}
		out[i] = spread{Phase: name, N: len(s), Min: s.Min(), Avg: s.Mean(), Max: s.Max(), StdDev: s.StdDev(), P50: s.Percentile(50), P95: s.Percentile(95), P99: s.Percentile(99)}
	}
	return out
}

// timeWakes wakes the snapshot n times, one after the other, and reports how long each took. A failure ends the series; what was measured is reported.
func (a *app) timeWakes(ctx context.Context, w waker, n int, cold bool) error {
	result := wakeTimes{Snapshot: w.ref, Cold: cold, Unit: "ms", Runs: []phasesMS{}}
	if !a.json {
		fmt.Fprintf(a.Out, "%5s", "run")
		for _, name := range phaseNames {
			fmt.Fprintf(a.Out, "%10s", name)
		}
		fmt.Fprintln(a.Out, "   ms")
	}
	var failed error
	for i := 1; i <= n && failed == nil; i++ {
		if cold && i > 1 {
			if failed = a.dropCaches(ctx, w); failed != nil {
				break
			}
		}
		var phases sandbox.Phases
		if phases, failed = a.wakeOnce(ctx, w, i); failed != nil {
			failed = fmt.Errorf("run %d of %d: %w", i, n, failed)
			break
		}
		run := inMS(phases)
		result.Runs = append(result.Runs, run)
		if !a.json {
			row(a.Out, fmt.Sprintf("%5d", i), run.values())
		}
	}
	result.Phases = summarize(result.Runs)
	if a.json {
		if failed != nil {
			result.Error = failed.Error()
		}
		if err := a.printJSON(result); err != nil {
			return err
		}
	} else if len(result.Runs) > 0 {
		printSpreads(a.Out, result.Phases)
	}
	return failed
}

// wakeOnce is one run. The first may have to lay out memory, which is long enough to show.
func (a *app) wakeOnce(ctx context.Context, w waker, i int) (sandbox.Phases, error) {
	var p sandbox.Progress = sandbox.NoProgress{}
	if i == 1 && a.fancy() {
		d := a.show()
		defer d.stop()
		p = d
	}
	s, err := w.wake(ctx, p)
	if err != nil {
		return sandbox.Phases{}, err
	}
	return s.phases, s.Close()
}

func row(w io.Writer, head string, values [len(phaseNames)]float64) {
	var b strings.Builder
	b.WriteString(head)
	for _, v := range values {
		fmt.Fprintf(&b, "%10.1f", v)
	}
	fmt.Fprintln(w, b.String())
}

func printSpreads(w io.Writer, all []spread) {
	fmt.Fprintln(w)
	for _, line := range []struct {
		name string
		of   func(spread) float64
	}{
		{"min", func(s spread) float64 { return s.Min }},
		{"avg", func(s spread) float64 { return s.Avg }},
		{"max", func(s spread) float64 { return s.Max }},
		{"sd", func(s spread) float64 { return s.StdDev }},
		{"p50", func(s spread) float64 { return s.P50 }},
		{"p95", func(s spread) float64 { return s.P95 }},
		{"p99", func(s spread) float64 { return s.P99 }},
	} {
		var values [len(phaseNames)]float64
		for i, s := range all {
			values[i] = line.of(s)
		}
		row(w, fmt.Sprintf("%5s", line.name), values)
	}
}
