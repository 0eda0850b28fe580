package firecracker

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// TestMeasure asks a machine what it has measured: numbers that count go on from where they were, whoever has asked for lines. A line that was asked for just before may
// be taken for the one that is asked for now, so that the numbers may be a moment old; they are never less than before, and come right.
func TestMeasure(t *testing.T) {
	both(t, func(t *testing.T, e *Engine) {
		m := start(t, e, config(t))
		sent, before := 1.0, 0.0 // requests for actions: the first has started it
		for round := range 3 {
			waitFor(t, "right count", func() bool {
				sent++
				now := measure(t, m)["put_api_requests.actions_count"]
				if now < before || now > sent {
					t.Fatalf("round %d: %v requests were sent, and counted %v, then %v", round, sent, before, now)
				}
				before = now
				return now == sent
			})
			if err := m.api.put(t.Context(), "/actions", action{actionFlushMetrics}); err != nil { // as it does itself once a minute
				t.Fatal(err)
			}
			sent++
		}
	})
}

func measure(t *testing.T, m *Machine) map[string]float64 {
	t.Helper()
	numbers, err := m.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return numbers
}

// balloonUpdate asks a guest to give memory back.
type balloonUpdate struct {
	MiB int64 `json:"amount_mib"`
}

// TestMeasureBalloon tells what the guest has been asked to give back, if that is anything.
func TestMeasureBalloon(t *testing.T) {
	m := start(t, testEngine(t, "1.16.1"), config(t))
	for _, mib := range []int64{0, 2, 0} {
		if err := m.api.patch(t.Context(), "/balloon", balloonUpdate{mib}); err != nil {
			t.Fatal(err)
		}
		if n, there := measure(t, m)["balloon.amount_mib"]; n != float64(mib) || there != (mib > 0) {
			t.Errorf("the guest was asked for %d MiB, and it is said for %v", mib, n)
		}
	}
}

// TestMetricsAddUp reads lines: counts are added, states are the last, and what is strange is left out.
func TestMetricsAddUp(t *testing.T) {
	m := newMetrics()
	m.read(strings.NewReader(`{"utc_timestamp_ms":1,"block":{"read_bytes":5,"read_agg":{"min_us":7,"max_us":9,"sum_us":16}},"latencies_us":{"pause_vm":3},"signals":{"sigpipe":1,"sigbus":1}}
{"utc_timestamp_ms":2,"block":{"read_bytes":4,"read_agg":{"min_us":8,"max_us":8,"sum_us":8}},"latencies_us":{"pause_vm":2},"signals":{"sigpipe":1,"sigbus":1},"\u001b[2J":{"a":1},"a.b":1,"s":"text","n":null}
`))
	want := map[string]float64{
		"block.read_bytes": 9, "block.read_agg.min_us": 8, "block.read_agg.max_us": 8, "block.read_agg.sum_us": 24, "latencies_us.pause_vm": 2, "signals.sigpipe": 2, "signals.sigbus": 1,
	}
	if !maps.Equal(m.total, want) {
		t.Errorf("%v, want %v", m.total, want)
	}
}

// TestHostileMetrics reads what a VMM says that was taken over: there is an end to what is kept of it.
func TestHostileMetrics(t *testing.T) {
	m := newMetrics()
	var lines strings.Builder
	for line := range 50 {
		lines.WriteString("{")
		for n := range 100 {
			fmt.Fprintf(&lines, "%q:1,", fmt.Sprintf("n%d_%d", line, n))
		}
		fmt.Fprintf(&lines, "%q:1}\n", strings.Repeat("x", maxNumberName+1))
	}
	m.read(strings.NewReader(lines.String()))
	if len(m.total) != maxNumbers {
		t.Errorf("%d numbers are kept", len(m.total))
	}
	for what, said := range map[string]string{
		"a line that never ends": strings.Repeat("x", 2*maxMetrics), "no JSON": "{\n{\"a\":1}\n", "an array": "[1]\n", "depth": strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000) + "\n",
	} {
		m := newMetrics()
		m.read(strings.NewReader(said))
		if _, ok := <-m.news; ok || len(m.total) > 0 {
			t.Errorf("%s is taken for %v", what, m.total)
		}
	}
}

// TestNoMetrics has a machine say something else in their place: asking is an error, and nothing waits.
func TestNoMetrics(t *testing.T) {
	m := start(t, testEngine(t, "1.16.1"), config(t))
	if _, err := m.home.metrics.WriteString("nonsense\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end of metrics", func() bool {
		_, err := m.Measure(t.Context())
		return errors.Is(err, errNoMetrics)
	})
}

func FuzzMetrics(f *testing.F) {
	f.Add([]byte(`{"utc_timestamp_ms":1,"vmm":{"panic_count":0}}`))
	f.Add([]byte(`{"block":{"agg":{"min_us":1e300}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, line []byte) {
		numbers, err := parseMetrics(line)
		if err != nil {
			return
		}
		for name := range numbers {
			if len(name) > maxNumberName || strings.ContainsFunc(strings.ReplaceAll(name, ".", ""), isStrange) {
				t.Errorf("a number is called %q", name)
			}
		}
		if len(numbers) > maxNumbers {
			t.Errorf("%d numbers", len(numbers))
		}
	})
}
