package pager

import (
	"errors"
	"fmt"
	"sync"

	"github.com/sporevm/spore/internal/pager/uffd"
)

// batch is how many events are read at once: more than most machines have threads.
const batch = 16

// queue is what was read of a machine's faults and is not answered yet. Reading
// waits for pages that are being put in, so it is done by who answers last, and
// for all.
type queue struct {
	mu        sync.Mutex
	waiting   []window // in room
	answering int      // threads that answer a fault of it now
	called    bool     // another is to come
	room      [batch]window
}

// read takes what events there are, acts on them, and appends the windows of faults.
func (m *machine) read(windows []window) ([]window, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return windows, nil
	}
	var events [batch]uffd.Message
	n, err := m.fd.Read(events[:])
	for i := range events[:n] {
		var w window
		var wrong error
		switch e := &events[i]; e.Kind {
		case uffd.Fault:
			w, wrong = m.fault(e)
			windows = append(windows, w)
		case uffd.Remove, uffd.Unmap:
			m.remove(e.Range())
		case uffd.Fork:
			e.Child().Close()
			wrong = errors.New("its process has forked, and the child's memory is nobody's")
		default:
			wrong = fmt.Errorf("unexpected event %#x of its memory", e.Kind)
		}
		err = errors.Join(err, wrong)
	}
	if err != nil {
		return nil, err
	}
	return windows, nil
}

// fault finds the place of a fault and remembers it.
func (m *machine) fault(e *uffd.Message) (window, error) {
	r, ok := m.layout.find(e.Address())
	if !ok {
		return window{}, fmt.Errorf("it touched memory at %#x, which is in none of its regions", e.Address())
	}
	if !e.Missing() {
		return window{}, fmt.Errorf("a fault at %#x that is not of a missing page", e.Address())
	}
	offset := int64(e.Address() - r.base + r.offset)
	w := r.around(offset)
	m.seenMu.Lock()
	defer m.seenMu.Unlock()
	if first := w.Offset / FaultAround; !m.seen.Contains(first) && len(m.touched) < maxRanges {
		m.seen.Add(first, max(1, w.Length/FaultAround))
		m.touched = append(m.touched, w.Range)
	}
	return w, nil
}

// remove remembers that memory from start to end was given back.
func (m *machine) remove(start, end uint64) {
	for _, r := range m.layout {
		from, to := max(start, r.base), min(end, r.end())
		if from < to {
			m.removed.Add(int64(from-r.base+r.offset)/unit, int64(to-from)/unit)
		}
	}
}
