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

	// mu is held for reading while pages are put in, from the look at removed until the
	// kernel is done, and for writing while events are read and removed is changed. So
	// any number of pages go in at the same time, but none while events are read, and
	// what was given back does not come back:
	//
	//   - Whoever gives memory back waits in the kernel until the event of it has been
	//     read. Then they drop the pages, at any time, and nobody can see when.
	//   - A page that was put in before the read is dropped with the others.
	//   - A page that is put in after it was chosen after it too, and is zeros.
	//   - Only one that was chosen before and put in after could be old and stay. The
	//     kernel refuses to put in while an event is not read (EAGAIN), but not later.
	//
	// A read that is for a fault may return such an event as well: the kernel gives out
	// faults first and then, into what room there is, all else. So no read is exempt.
	mu      sync.RWMutex
	fd      uffd.FD
	closed  bool
	removed block.Set // blocks of unit bytes that read as zeros from now on

	queue queue

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
