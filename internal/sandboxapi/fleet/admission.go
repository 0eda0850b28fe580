package fleet

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// startMemory is what a sandbox is expected to add to the host's memory in its first minutes: its VMM, translated code, and what it writes. Sandboxes of one
// template share the rest. What they add later is seen in what the host has left.
const startMemory = 96 << 20

// retryBusy is when a host that is full may have room again.
const retryBusy = 5 * time.Second

// seat is an owner's right to one more running sandbox, until that counts by itself.
type seat struct {
	f     *Fleet
	use   *use
	given bool
}

// giveLocked gives the seat back, once. f.mu is held.
func (s *seat) giveLocked() {
	if !s.given {
		s.given = true
		s.use.running--
	}
}

func (s *seat) give() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.giveLocked()
}

// admit lets an owner have one more running sandbox, or says why not. The seat is given back when the sandbox counts by itself, or when there will be none.
func (f *Fleet) admit(owner string) (*seat, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, errClosing()
	}
	u := f.usage[owner]
	if u == nil {
		u = &use{}
		f.usage[owner] = u
	}
	if limit := f.o.MaxRunning; limit > 0 && u.running >= limit {
		f.metrics.refused("quota")
		return nil, &Error{Kind: Quota, Message: fmt.Sprintf("%d sandboxes run, which is as many as a key may have", u.running), Hint: "kill or pause one", Retry: retryBusy}
	}
	u.running++
	return &seat{f: f, use: u}, nil
}

// admitPause lets an owner have one more that sleeps.
func (f *Fleet) admitPause(owner string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u, limit := f.usage[owner], f.o.MaxPaused; limit > 0 && u != nil && u.paused >= limit {
		f.metrics.refused("quota")
		return &Error{Kind: Quota, Message: fmt.Sprintf("%d sandboxes are paused, which is as many as a key may have", u.paused), Hint: "kill one", Retry: retryBusy}
	}
	return nil
}

// room says whether the host's memory has room for one more machine. Sandboxes that only wait give way.
func (f *Fleet) room() error {
	if f.hasRoom() {
		return nil
	}
	for _, p := range f.allPools() {
		p.pool.Drain(1)
	}
	if f.hasRoom() {
		return nil
	}
	f.metrics.refused("memory")
	return &Error{Kind: Busy, Message: "this host has no memory left for another sandbox", Hint: "kill or pause one, or try again later", Retry: retryBusy}
}

func (f *Fleet) hasRoom() bool {
	m, err := hostMemory()
	return err != nil || m.available-f.o.ReserveMemory >= startMemory
}

// memory is what the host has, in bytes.
type memory struct{ total, available int64 }

func hostMemory() (memory, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return memory{}, err
	}
	m := memory{available: -1}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kib); n == 1 {
			m.total = kib << 10
		} else if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			m.available = kib << 10
		}
	}
	if m.total <= 0 || m.available < 0 {
		return memory{}, errors.New("/proc/meminfo lacks what it should tell")
	}
	return m, nil
}
