package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// Limits of what a VMM, which a guest may have taken over, can say that it has measured.
const (
	maxMetrics     = 1 << 20 // bytes of a line; real ones have about 10 KB
	maxNumbers     = 2000    // real ones have about 500
	maxNumberName  = 100     // bytes
	maxNumberDepth = 4
)

// metrics takes in what Firecracker measures: a line of JSON once a minute, and when it is asked. Most numbers count since the line before, so they are added up.
type metrics struct {
	asking sync.Mutex    // one asks at a time
	news   chan struct{} // holds one element when a line has come; closed when none will come any more

	mu    sync.Mutex
	total map[string]float64
}

func newMetrics() *metrics {
	return &metrics{news: make(chan struct{}, 1), total: map[string]float64{}}
}

// read adds up lines until the pipe is closed, or something comes that can be none.
func (m *metrics) read(pipe io.Reader) {
	defer close(m.news)
	lines := bufio.NewScanner(pipe)
	lines.Buffer(make([]byte, 16<<10), maxMetrics)
	for lines.Scan() {
		numbers, err := parseMetrics(lines.Bytes())
		if err != nil {
			return
		}
		m.add(numbers)
		select {
		case m.news <- struct{}{}:
		default: // nobody has looked since the line before
		}
	}
}

func (m *metrics) add(numbers map[string]float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, n := range numbers {
		before, known := m.total[name]
		switch {
		case !known && len(m.total) == maxNumbers:
		case isState(name):
			m.total[name] = n
		default:
			m.total[name] = before + n
		}
	}
}

// isState tells a number that says how things are, or were the last time, from those that count since the line before.
func isState(name string) bool {
	topic, rest, _ := strings.Cut(name, ".")
	switch topic {
	case "latencies_us", "seccomp":
		return true
	case "signals":
		return rest != "sigpipe" // the others are deadly
	}
	return strings.HasSuffix(name, ".min_us") || strings.HasSuffix(name, ".max_us") || strings.HasSuffix(name, "_time_us") || strings.HasSuffix(name, "_time_cpu_us")
}

// parseMetrics returns the numbers of a line by their names, the parts of which have dots between them.
func parseMetrics(line []byte) (map[string]float64, error) {
	var all map[string]any
	if err := json.Unmarshal(line, &all); err != nil {
		return nil, fmt.Errorf("reading Firecracker's metrics: %w", err)
	}
	numbers := map[string]float64{}
	delete(all, "utc_timestamp_ms")
	collect(numbers, "", all, 0)
	return numbers, nil
}

func collect(into map[string]float64, prefix string, from map[string]any, depth int) {
	for part, value := range from {
		name := prefix + part
		if len(into) == maxNumbers || len(name) > maxNumberName || depth == maxNumberDepth || strings.ContainsFunc(part, isStrange) {
			continue
		}
		switch v := value.(type) {
		case float64:
			into[name] = v
		case map[string]any:
			collect(into, name+".", v, depth+1)
		}
	}
}

// isStrange tells what no name of a number has: they are shown on terminals.
func isStrange(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
}

// Measure implements [vmm.Measured]: it has Firecracker measure, and adds what the guest has been asked to give back.
func (m *Machine) Measure(ctx context.Context) (map[string]float64, error) {
	numbers, err := m.measure(ctx)
	if err != nil {
		return nil, m.Explain(fmt.Errorf("reading Firecracker's metrics: %w", err))
	}
	var b Balloon
	var refusal *APIError
	switch err := m.api.call(ctx, quick, http.MethodGet, "/balloon", nil, &b); {
	case err == nil:
		numbers["balloon.amount_mib"] = float64(b.MiB)
	case !errors.As(err, &refusal): // a machine that another program has made may have none
		return nil, m.Explain(err)
	}
	maps.DeleteFunc(numbers, func(_ string, n float64) bool { return n == 0 })
	return numbers, nil
}

// errNoMetrics says that something else than metrics has come in their place.
var errNoMetrics = errors.New("it has said something that is none")

func (m *Machine) measure(ctx context.Context) (map[string]float64, error) {
	m.metrics.asking.Lock()
	defer m.metrics.asking.Unlock()
	select {
	case <-m.metrics.news: // of before
	default:
	}
	if err := m.api.put(ctx, "/actions", action{actionFlushMetrics}); err != nil {
		return nil, err
	}
	select {
	case _, ok := <-m.metrics.news:
		if !ok {
			return nil, errNoMetrics
		}
	case <-m.Done():
		return nil, vmm.ErrDead
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(quick):
		return nil, errors.New("none came")
	}
	m.metrics.mu.Lock()
	defer m.metrics.mu.Unlock()
	return maps.Clone(m.metrics.total), nil
}
