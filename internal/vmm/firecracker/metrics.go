package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// maxMetrics bounds a line of metrics; real ones have about 10 KB.
const maxMetrics = 1 << 20

// metrics takes in what Firecracker measures: a line of JSON once a minute, and when it is asked.
type metrics struct {
	mu    sync.Mutex // one asks at a time
	lines chan []byte
}

// read keeps the newest line until the pipe is closed.
func (m *metrics) read(pipe io.Reader) {
	lines := bufio.NewScanner(pipe)
	lines.Buffer(make([]byte, 16<<10), maxMetrics)
	for lines.Scan() {
		select {
		case <-m.lines: // nobody wanted it
		default:
		}
		m.lines <- bytes.Clone(lines.Bytes())
	}
	close(m.lines)
}

// Metrics has Firecracker measure and returns what it says: objects by topic, numbers by name. Counters count since it was asked last.
func (m *Machine) Metrics(ctx context.Context) (map[string]json.RawMessage, error) {
	m.metrics.mu.Lock()
	defer m.metrics.mu.Unlock()
	select {
	case <-m.metrics.lines:
	default:
	}
	if err := m.api.put(ctx, "/actions", action{actionFlushMetrics}); err != nil {
		return nil, m.Explain(err)
	}
	select {
	case line, ok := <-m.metrics.lines:
		if !ok {
			return nil, m.Explain(fmt.Errorf("reading Firecracker's metrics: %w", vmm.ErrDead))
		}
		return decodeMetrics(line)
	case <-m.Done():
		return nil, m.Explain(fmt.Errorf("reading Firecracker's metrics: %w", vmm.ErrDead))
	case <-ctx.Done():
		return nil, fmt.Errorf("reading Firecracker's metrics: %w", context.Cause(ctx))
	case <-time.After(quick):
		return nil, errors.New("reading Firecracker's metrics: none came")
	}
}

func decodeMetrics(line []byte) (map[string]json.RawMessage, error) {
	var out map[string]json.RawMessage
	if err := json.Unmarshal(line, &out); err != nil {
		return nil, fmt.Errorf("reading Firecracker's metrics: %w", err)
	}
	return out, nil
}
