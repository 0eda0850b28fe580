package pager

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager/uffd"
)

// poller answers the faults of all machines of a process with a few threads. One
// of them waits in the kernel; what comes one by one it answers itself, which is
// what keeps a single fault short. What comes together it shares with the others.
type poller struct {
	epoll, exit int // descriptors
	helpers     int
	help        chan *polled // has faults to answer
	leader      sync.WaitGroup
	others      sync.WaitGroup
	faults      *atomic.Int64

	mu       sync.RWMutex
	machines map[int32]*polled
	next     int32
}

const (
	// batch is how many events are taken at once, from the epoll and from a machine.
	batch = 16
	// turn is how many faults of one machine are answered before others have a look in.
	turn = 32
)

// polled is a machine under its number.
type polled struct {
	*machine
	id    int32
	ended func() // called once when its process has ended

	queueMu sync.Mutex
	queue   []window // faults that were read and nobody has begun to answer
	busy    int      // threads that answer them
}

// What an event is about, beside the machine's number.
const (
	aboutMemory int32 = iota
	aboutProcess
	aboutExit
)

func newPoller(helpers int, faults *atomic.Int64) (*poller, error) {
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
	p := &poller{
		epoll: epoll, exit: exit, machines: map[int32]*polled{}, faults: faults,
		helpers: helpers, help: make(chan *polled, helpers*batch),
	}
	p.leader.Go(p.lead)
	for range helpers {
		p.others.Go(func() {
			var scratch [FaultAround / unit]piece
			for m := range p.help {
				p.serve(m, scratch[:])
			}
		})
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

// lead waits for events until close.
func (p *poller) lead() {
	var (
		events  [batch]unix.EpollEvent
		scratch [FaultAround / unit]piece
		ready   []*polled
	)
	for {
		n, err := unix.EpollWait(p.epoll, events[:], -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		ready = ready[:0]
		for _, e := range events[:n] {
			if e.Pad == aboutExit {
				return
			}
			m := p.find(e.Fd)
			switch {
			case m == nil:
			case e.Pad == aboutProcess:
				go m.ended()
			default:
				ready = append(ready, m)
			}
		}
		for len(ready) > 1 && p.share(ready[len(ready)-1]) {
			ready = ready[:len(ready)-1]
		}
		for _, m := range ready {
			p.serve(m, scratch[:])
		}
	}
}

// share has another thread serve a machine, and tells whether one has the time.
func (p *poller) share(m *polled) bool {
	select {
	case p.help <- m:
		return true
	default:
		return false
	}
}

// serve answers a machine's faults until there are none, or others are to have their
// turn. Several threads may serve a machine. Events are read only by the last one
// that is busy: those who put pages meanwhile would have to stop for that.
func (p *poller) serve(m *polled, scratch []piece) {
	answered := 0
	defer func() { p.faults.Add(int64(answered)) }()
	m.queueMu.Lock()
	m.busy++
	for {
		if n := len(m.queue); n > 0 {
			w := m.queue[n-1]
			m.queue = m.queue[:n-1]
			m.queueMu.Unlock()
			m.answer(w, scratch)
			answered++
			m.queueMu.Lock()
			continue
		}
		if m.busy > 1 {
			m.busy--
			m.queueMu.Unlock()
			return
		}
		var n int
		var err error
		if answered < turn {
			n, err = m.read()
		}
		if n > 1 {
			for range min(n-1, p.helpers) {
				p.share(m)
			}
		}
		if n == 0 {
			m.busy--
			m.queueMu.Unlock()
			if err == nil {
				err = p.rearm(m)
			}
			if err != nil {
				go m.fail(err) // which may take time
			}
			return
		}
	}
}

// read takes what has happened from a machine, puts its faults into the queue and
// returns how many there are. The queue is locked.
func (m *polled) read() (int, error) {
	var messages [batch]uffd.Message
	var err error
	m.queue, err = m.machine.read(m.queue[:0], messages[:])
	if err != nil {
		return 0, err
	}
	return len(m.queue), nil
}

// rearm has the leader look at a machine again.
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
	one := [8]byte{1}
	unix.Write(p.exit, one[:])
	p.leader.Wait()
	close(p.help)
	p.others.Wait()
	unix.Close(p.exit)
	unix.Close(p.epoll)
}
