package pager

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// poller answers the faults of all machines of a process with a few threads, all of
// which wait in the kernel for any of them. A machine that is found to have several
// faults at once has several threads answer; one that has a fault at a time is looked
// at by a single thread, which keeps it short.
type poller struct {
	epoll, exit, bell int // descriptors
	threads           sync.WaitGroup
	idle              atomic.Int32 // threads that wait
	calls             chan *polled // machines that another thread is to look at; the bell is rung for each
	faults            *atomic.Int64

	mu       sync.RWMutex
	machines map[int32]*polled
	last     int32 // number that was given
}

// turn is how many faults of one machine a thread answers before it looks at others,
// but for what it has read.
const turn = 32

// maxCalls is how many calls may be under way: more than there are idle threads.
const maxCalls = 64

// polled is a machine under its number.
type polled struct {
	*machine
	id    int32
	ended func() // called once when its process has ended
}

// What an event is about, beside the machine's number.
const (
	aboutMemory int32 = iota
	aboutProcess
	aboutExit
	aboutCall
)

func newPoller(threads int, faults *atomic.Int64) (_ *poller, err error) {
	p := &poller{epoll: -1, exit: -1, bell: -1, machines: map[int32]*polled{}, calls: make(chan *polled, maxCalls), faults: faults}
	defer func() {
		if err != nil {
			p.closeAll()
			err = fmt.Errorf("making ready to wait for faults: %w", err)
		}
	}()
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if p.exit, err = p.eventfd(unix.EPOLLIN, aboutExit); err != nil {
		return nil, err
	}
	if p.bell, err = p.eventfd(unix.EPOLLIN|unix.EPOLLET, aboutCall); err != nil { // it need not be reset to be rung again
		return nil, err
	}
	for range threads {
		p.threads.Go(p.work)
	}
	return p, nil
}

// eventfd returns a descriptor that threads wake up for when it is written to.
func (p *poller) eventfd(events uint32, about int32) (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Pad: about}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// add has the faults of a machine answered until remove.
func (p *poller) add(m *machine, ended func()) (*polled, error) {
	p.mu.Lock()
	p.last++
	added := &polled{machine: m, id: p.last, ended: sync.OnceFunc(ended)}
	p.machines[added.id] = added
	p.mu.Unlock()
	err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, m.process.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: added.id, Pad: aboutProcess})
	if err == nil {
		err = p.arm(added, unix.EPOLL_CTL_ADD)
	}
	if err != nil {
		p.remove(added)
		return nil, fmt.Errorf("waiting for faults: %w", err)
	}
	return added, nil
}

func (p *poller) arm(m *polled, op int) error {
	return unix.EpollCtl(p.epoll, op, int(m.fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: m.id, Pad: aboutMemory})
}

// remove lets go of a machine whose descriptors are still open. Others have copies
// of those, so that closing them would not take them out of the epoll.
func (p *poller) remove(m *polled) {
	p.mu.Lock()
	delete(p.machines, m.id)
	p.mu.Unlock()
	for _, fd := range []int{int(m.fd), m.process.fd} {
		_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil) // it need not have got there
	}
}

func (p *poller) find(id int32) *polled {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.machines[id]
}

// work answers faults until close.
func (p *poller) work() {
	var (
		events  [1]unix.EpollEvent
		scratch [FaultAround / unit]piece
	)
	for {
		p.idle.Add(1)
		n, err := unix.EpollWait(p.epoll, events[:], -1)
		p.idle.Add(-1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || events[0].Pad == aboutExit {
			return
		}
		m := p.find(events[0].Fd)
		if events[0].Pad == aboutCall {
			m = p.called()
		}
		if m == nil {
			continue
		}
		if events[0].Pad == aboutProcess {
			go m.ended()
			continue
		}
		if err := p.serve(m, scratch[:]); err != nil {
			go m.fail(err) // which may take time
		}
	}
}

// serve answers faults of a machine, which the epoll is silent about until it is
// told to look at it again.
func (p *poller) serve(m *polled, scratch []piece) error {
	for answered := 0; ; answered++ {
		w, ok, err := p.next(m, answered)
		if err != nil || !ok {
			return err
		}
		m.answer(w, scratch)
		p.faults.Add(1)
	}
}

// next returns what a thread that has answered so many faults of a machine is to
// answer next: of what was read, or else of what there is to read. If it is not to
// go on, the second result is false.
func (p *poller) next(m *polled, answered int) (window, bool, error) {
	q := &m.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if answered > 0 {
		q.answering--
	} else {
		q.called = false
	}
	if len(q.waiting) == 0 {
		if q.answering > 0 {
			return window{}, false, nil // who is last goes on
		}
		var err error
		if answered < turn {
			q.waiting, err = m.read(q.room[:0])
		}
		if err == nil && len(q.waiting) == 0 {
			err = p.rearm(m)
		}
		if err != nil || len(q.waiting) == 0 {
			return window{}, false, err
		}
	}
	w := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.answering++
	if len(q.waiting) > 0 && !q.called && p.idle.Load() > 0 {
		q.called = p.call(m)
	}
	return w, true, nil
}

// call has another thread look at a machine, and tells whether it will.
func (p *poller) call(m *polled) bool {
	select {
	case p.calls <- m:
		ring(p.bell)
		return true
	default:
		return false
	}
}

// called returns the machine of a call, or nil if others were faster. One that is
// left may have had the bell rung while this one was still heard.
func (p *poller) called() *polled {
	select {
	case m := <-p.calls:
		if len(p.calls) > 0 {
			ring(p.bell)
		}
		return m
	default:
		return nil
	}
}

// ring writes to an eventfd.
func ring(fd int) {
	one := [8]byte{1}
	unix.Write(fd, one[:])
}

// rearm has the epoll look at a machine again.
func (p *poller) rearm(m *polled) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil
	}
	if err := p.arm(m, unix.EPOLL_CTL_MOD); err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: it was removed just now
		return fmt.Errorf("waiting for faults: %w", err)
	}
	return nil
}

// close ends the threads.
func (p *poller) close() {
	ring(p.exit)
	p.threads.Wait()
	p.closeAll()
}

func (p *poller) closeAll() {
	for _, fd := range []int{p.exit, p.bell, p.epoll} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
