package pager

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager/uffd"
)

// poller answers the faults of all machines of a process with a few threads. Each
// waits in the kernel for any of them. Which one has read from a machine lets the
// next read before it answers, so one machine can keep all of them busy, and a
// machine that never stops does not keep the others waiting.
type poller struct {
	epoll, exit int // descriptors
	workers     sync.WaitGroup
	faults      *atomic.Int64

	mu       sync.RWMutex
	machines map[int32]*polled
	next     int32
}

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
)

func newPoller(workers int, faults *atomic.Int64) (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making ready to wait for faults: %w", err)
	}
	exit, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, exit, &unix.EpollEvent{Events: unix.EPOLLIN, Pad: aboutExit})
	}
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("making ready to wait for faults: %w", err)
	}
	p := &poller{epoll: epoll, exit: exit, machines: map[int32]*polled{}, faults: faults}
	for range workers {
		p.workers.Go(p.work)
	}
	return p, nil
}

// add has the faults of a machine answered until remove.
func (p *poller) add(m *machine, ended func()) (*polled, error) {
	p.mu.Lock()
	p.next++
	added := &polled{machine: m, id: p.next, ended: sync.OnceFunc(ended)}
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

func (p *poller) work() {
	var (
		events   [1]unix.EpollEvent
		messages [1]uffd.Message
		faults   []window
		scratch  [FaultAround / unit]piece
	)
	for {
		n, err := unix.EpollWait(p.epoll, events[:], -1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || events[0].Pad == aboutExit {
			return
		}
		m := p.find(events[0].Fd)
		if m == nil {
			continue
		}
		if events[0].Pad == aboutProcess {
			go m.ended()
			continue
		}
		faults, err = m.read(faults[:0], messages[:])
		if err != nil {
			m.fail(err)
			continue
		}
		m.mu.RLock()
		if !m.closed {
			err = p.arm(m, unix.EPOLL_CTL_MOD)
		}
		m.mu.RUnlock()
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: it was removed just now
			m.fail(fmt.Errorf("waiting for faults: %w", err))
			continue
		}
		for _, w := range faults {
			m.answer(w, scratch[:])
		}
		p.faults.Add(int64(len(faults)))
	}
}

// close ends the workers.
func (p *poller) close() {
	one := [8]byte{1}
	unix.Write(p.exit, one[:])
	p.workers.Wait()
	unix.Close(p.exit)
	unix.Close(p.epoll)
}
