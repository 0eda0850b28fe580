package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
)

// Bounds of measuring.
const (
	maxSeries   = 1000            // measurements that are kept of a running sandbox
	sampleEvery = 2 * time.Second // of more frequent questions the latest answer serves all
)

// sample is what the processor time of the next measurement is compared with.
type sample struct {
	at          time.Time
	busy, total int64
}

// Metrics measures a running sandbox, and returns that with the measurements before, from since to until; zero times are no bounds. A sandbox is measured
// only when somebody asks: measuring it costs it time and memory. One that sleeps has none.
func (f *Fleet) Metrics(ctx context.Context, id string, since, until time.Time) ([]Metric, error) {
	e, err := f.living(id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	live, info, recent := e.live, e.info, time.Since(e.last.at) < sampleEvery
	e.mu.Unlock()
	if live != nil && !recent {
		client := live.Agent()
		if client == nil {
			return nil, gone(info)
		}
		stats, err := client.Stats(ctx)
		// One that is paused, frozen or killed just now is not measured; what is known of it is told all the same.
		if err != nil && !errors.Is(err, guest.ErrClosed) {
			return nil, fmt.Errorf("measuring sandbox %s: %w", id, err)
		}
		vmm, failed := live.Measure(ctx)
		if failed != nil { // the guest's own numbers are worth telling without
			f.o.Log.Debug("a machine's monitor tells nothing", "sandbox", id, "error", failed)
		}
		e.mu.Lock()
		if err == nil && e.live == live {
			e.measured(stats, vmm)
		}
		e.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []Metric{}
	for _, m := range e.series {
		if (since.IsZero() || !m.Time.Before(since)) && (until.IsZero() || !m.Time.After(until)) {
			list = append(list, m)
		}
	}
	return list, nil
}

// measured keeps a measurement. e.mu is held.
func (e *entry) measured(s api.Stats, vmm map[string]float64) {
	now := sample{time.Now(), s.CPUBusy, s.CPUTotal}
	m := Metric{
		Time: now.at.UTC(), CPUs: s.CPUs, MemTotal: s.MemTotal, MemUsed: s.MemTotal - s.MemAvailable, MemCache: s.MemCached,
		DiskTotal: s.DiskTotal, DiskUsed: s.DiskTotal - s.DiskFree, VMM: vmm,
	}
	if total := now.total - e.last.total; total > 0 {
		m.CPUPercent = 100 * float64(max(0, now.busy-e.last.busy)) / float64(total) * float64(max(1, s.CPUs))
	}
	e.last = now
	if len(e.series) >= maxSeries {
		e.series = append(e.series[:0], e.series[1:]...)
	}
	if n := len(e.series); n > 0 {
		e.series[n-1].VMM = nil // they are many
	}
	e.series = append(e.series, m)
}
