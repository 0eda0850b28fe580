package pager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/uffd"
)

const (
	// handshakePatience is how long one who has connected may say nothing.
	handshakePatience = 10 * time.Second
	// acceptPatience is how long one who has connected may have to wait for
	// descriptors, acceptPause how often that is tried.
	acceptPatience = 3 * time.Second
	acceptPause    = 20 * time.Millisecond
	// handshakes is how many of them one fork's socket has at once.
	handshakes = 16
	// deathPatience is how long a killed process may take to end.
	deathPatience = 10 * time.Second
)

// fork is a socket, and then the machine that has connected to it. What changes is
// guarded by the server's lock.
type fork struct {
	id       string
	uid      int // who may connect
	path     string
	listener *net.UnixListener

	work     sync.WaitGroup // those who accept and greet
	greeting map[*net.UnixConn]bool
	released bool
	prefetch []Range // given to its machine when it connects

	conn    *net.UnixConn // kept as long as the machine: it may want to know who we are
	machine *polled       // nil before it has connected and after its end
	err     error         // why it has failed
}

// register makes the socket of a fork. One that is registered keeps what it has.
func (s *server) register(id string, uid int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.forks[id]; f != nil {
		if f.uid != uid {
			return "", fmt.Errorf("fork %s is registered for user %d", id, f.uid)
		}
		return f.path, nil
	}
	if s.closing {
		return "", errors.New("the pager is ending")
	}
	if uid != os.Geteuid() {
		if err := os.Chmod(s.root, 0o711); err != nil { // its sockets are reached through it
			return "", fmt.Errorf("letting user %d at its socket: %w", uid, err)
		}
	}
	s.sockets++
	path := filepath.Join(s.root, strconv.Itoa(s.sockets))
	l, err := listen(path, "unix", uid)
	if err != nil {
		return "", fmt.Errorf("making a socket for fork %s: %w", id, err)
	}
	f := &fork{id: id, uid: uid, path: path, listener: l, greeting: map[*net.UnixConn]bool{}}
	s.forks[id] = f
	f.work.Go(func() { s.accept(f) })
	return path, nil
}

// connect begins to serve a machine. After an error its process is dead, or at
// least will read nothing.
func (s *server) connect(f *fork, conn *net.UnixConn, peer *process, regions []region, fd uffd.FD) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	m := &machine{
		fork: f.id, source: s.source, layout: regions, process: peer, ctx: ctx, cancel: cancel, fd: fd, pending: map[int64]*bool{},
	}
	m.fail = func(err error) {
		s.failFork(f, fmt.Errorf("serving the memory of process %d: %w", peer.pid, err), peer)
	}
	err := s.admit(f, m, conn)
	if err == nil {
		return nil
	}
	cancel(err)
	if !peer.end() { // the descriptor stays open, or it would read zeros
		return fmt.Errorf("%w; its process %d can't be ended", err, peer.pid)
	}
	fd.Close()
	return err
}

// admit makes a machine that of a fork that has none.
func (s *server) admit(f *fork, m *machine, conn *net.UnixConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.err != nil:
		return f.err
	case s.closing || s.forks[f.id] != f:
		return errors.New("the fork is released")
	case f.conn != nil:
		return errors.New("the fork has a machine already")
	}
	polled, err := s.poll.add(m, func() { s.ended(f) })
	if err != nil {
		go m.fail(err) // which takes the lock
		return err
	}
	f.machine, f.conn = polled, conn
	f.listener.Close()
	s.orphaned.Stop()
	s.tell(message{Op: eventConnected, Fork: f.id, PID: m.process.pid, process: m.process})
	if list := f.prefetch; len(list) > 0 {
		m.filling.Go(func() { m.prefetch(list) })
	}
	return nil
}

// failFork gives a fork up: its machine, peer unless that is not known, is killed,
// and the Tracker hears why. The userfaultfd stays open until the process has ended.
func (s *server) failFork(f *fork, err error, peer *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.err != nil || (f.machine != nil && f.machine.process != peer) {
		if peer == nil {
			return
		}
		if killErr := peer.kill(); killErr != nil {
			s.log.Error("a process that connected in vain can't be ended", "fork", f.id, "pid", peer.pid, "error", killErr)
		}
		return
	}
	f.err = err
	f.listener.Close()
	if f.machine != nil {
		f.machine.cancel(err)
	}
	if peer != nil { // or else it is for the Tracker alone to end it
		if killErr := peer.kill(); killErr != nil {
			f.err = errors.Join(err, killErr)
		}
	}
	s.log.Error("a machine's memory can't be served", "fork", f.id, "error", f.err)
	s.tell(message{Op: eventFailed, Fork: f.id, Error: block.Tell(f.err)})
}

// ended lets go of a machine whose process has ended.
func (s *server) ended(f *fork) {
	s.mu.Lock()
	m := f.machine
	f.machine = nil
	s.maybeOrphaned()
	s.mu.Unlock()
	if m == nil {
		return
	}
	s.poll.remove(m)
	m.close()
	m.process.close()
	f.conn.Close()
}

// dismiss ends a fork. A machine that is still there is killed: nobody would
// answer its faults.
func (s *server) dismiss(f *fork) error {
	s.mu.Lock()
	if s.forks[f.id] == f {
		delete(s.forks, f.id)
	}
	f.released = true
	for conn := range f.greeting {
		conn.CloseRead()
	}
	s.mu.Unlock()
	s.drain(f)
	f.listener.Close()
	f.work.Wait()
	s.mu.Lock()
	m := f.machine
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	if !m.process.end() {
		m.cancel(errEnded)
		return fmt.Errorf("releasing fork %s: its process %d can't be ended", f.id, m.process.pid)
	}
	s.ended(f)
	return nil
}

// end kills a process and tells whether it is gone.
func (p *process) end() bool { return p.kill() == nil && p.wait(deathPatience) }
