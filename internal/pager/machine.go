package pager

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/uffd"
)

// machine is a connected VMM whose faults are answered.
type machine struct {
	fork    string
	source  *source
	layout  layout
	process *process
	ctx     context.Context // ends when nothing is to be filled any more
	cancel  context.CancelCauseFunc
	fail    func(error) // told once what can't be served
	keeps   bool        // it never gives memory back

	// mu is held for reading while pages are put into the machine, from the look at
	// removed on, and for writing while events are read. A removal takes effect once
	// its event has been read, so no page that was chosen before comes after it. Where
	// none is removed events may be read at any time.
	mu      sync.RWMutex
	fd      uffd.FD
	closed  bool
	removed block.Set // blocks of unit bytes that read as zeros from now on

	seenMu  sync.Mutex
	seen    block.Set // windows that had a fault, by FaultAround
	touched []Range   // the same, in the order of their first faults

	pendingMu sync.Mutex
	pending   map[int64]*bool // by start of window: being filled; true: and again then
	filling   sync.WaitGroup
}

// unit is the size of what can be removed, in bytes: no page is smaller.
const unit = 4 << 10

// maxRanges bounds what is remembered of first faults, and lists to prefetch: 64 GiB
// of single faults.
const maxRanges = 1 << 20

// read takes one event from the machine, if there is one, and acts on it unless it
// is a fault: then it returns the window to fill.
func (m *machine) read() (w window, fault bool, err error) {
	if m.keeps {
		m.mu.RLock()
		defer m.mu.RUnlock()
	} else {
		m.mu.Lock()
		defer m.mu.Unlock()
	}
	if m.closed {
		return w, false, nil
	}
	var events [1]uffd.Message
	n, err := m.fd.Read(events[:])
	if err != nil || n == 0 {
		return w, false, err
	}
	switch e := &events[0]; e.Kind {
	case uffd.Fault:
		w, err = m.fault(e)
		return w, true, err
	case uffd.Remove, uffd.Unmap:
		if m.keeps {
			return w, false, errors.New("it has given memory back, although it was said to have no balloon")
		}
		m.remove(e.Range())
		return w, false, nil
	case uffd.Fork:
		e.Child().Close()
		return w, false, errors.New("its process has forked, and the child's memory is nobody's")
	default:
		return w, false, fmt.Errorf("unexpected event %#x of its memory", e.Kind)
	}
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

// errAgain says that events are to be read before pages can be put.
var errAgain = errors.New("events are to be read first")

// errNoMemory says that the host has no page to give just now.
var errNoMemory = errors.New("no memory for a page of the machine")

// put puts p at a place of a window, or zeros where memory was given back. A nil p
// is zeros. Who waits for it is woken.
func (m *machine) put(w window, r Range, p []byte) error {
	for r.Length > 0 {
		n, err := m.putSome(w, r, p)
		if err != nil {
			return err
		}
		r.Offset, r.Length = r.Offset+n, r.Length-n
		if p != nil {
			p = p[n:]
		}
	}
	return nil
}

// putSome does a part of put and returns how long it is.
func (m *machine) putSome(w window, r Range, p []byte) (int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, errEnded
	}
	page, address := int64(w.region.pageSize), w.address(r.Offset)
	if p != nil && m.removed.Len() > 0 {
		r.Length, p = m.unremoved(r, p, page)
	}
	var n int
	var err error
	switch {
	case p != nil:
		n, err = m.fd.Copy(address, p[:r.Length])
	case page > FaultAround:
		r.Length = page
		n, err = m.fd.Copy(address, m.source.zeros[:page])
	default:
		n, err = m.fd.Zero(address, uint64(r.Length))
	}
	switch {
	case err == nil || n > 0:
		return int64(n), nil
	case err == unix.EEXIST || err == unix.ENOENT:
		// There is a page, or none is wanted any more.
		if err := m.fd.Wake(address, uint64(page)); err != nil && err != unix.ENOENT {
			return 0, fmt.Errorf("waking it: %w", err)
		}
		return page, nil
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, errAgain
	case err == unix.ENOMEM || err == unix.ENOSPC:
		return 0, fmt.Errorf("%w: %w", errNoMemory, err)
	case err == unix.ESRCH:
		return 0, errEnded
	}
	return 0, err
}

// unremoved cuts a range short where memory that was given back begins or ends. It
// returns no bytes if the range begins with such.
func (m *machine) unremoved(r Range, p []byte, page int64) (int64, []byte) {
	gone := func(offset int64) bool { return m.removed.Contains(offset / unit) }
	first := gone(r.Offset)
	n := page
	for n < r.Length && gone(r.Offset+n) == first {
		n += page
	}
	if first {
		p = nil
	}
	return min(n, r.Length), p
}

// errEnded says that the machine is no more.
var errEnded = errors.New("the machine has ended")

// close ends all work for the machine and closes its userfaultfd. The process
// must have ended.
func (m *machine) close() {
	m.cancel(errEnded)
	m.pendingMu.Lock() // who begins to fill looks at ctx under this lock, so nobody does from here on
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		m.fd.Close()
	}
	m.mu.Unlock()
	m.pendingMu.Unlock()
	m.filling.Wait()
}

// pause lets others get on before something is tried again, longer each time.
func pause(ctx context.Context, attempt int) {
	if attempt < 10 {
		runtime.Gosched()
		return
	}
	select {
	case <-time.After(min(time.Duration(attempt)*10*time.Microsecond, 5*time.Millisecond)):
	case <-ctx.Done():
	}
}
