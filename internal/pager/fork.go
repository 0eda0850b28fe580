package pager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

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
	uid      int  // who may connect
	keeps    bool // its machine gives no memory back
	path     string
	listener *net.UnixListener

	prefetch []Range // given to its machine when it connects

	conn    *net.UnixConn // kept as long as the machine: it may want to know who we are
	machine *polled       // nil before it has connected and after its end
	err     error         // why it has failed
}

// register makes the socket of a fork. One that is registered keeps what it has.
func (s *server) register(id string, uid int, noBalloon bool) (string, error) {
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
	f := &fork{id: id, uid: uid, keeps: noBalloon, path: path, listener: l}
	s.forks[id] = f
	go s.accept(f)
	return path, nil
}

// accept receives those who connect to a fork's socket until one of them is served.
func (s *server) accept(f *fork) {
	slots := make(chan struct{}, handshakes)
	var waiting time.Time // since when somebody can't be accepted; zero: nobody is there
	for {
		slots <- struct{}{}
		conn, err := f.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors, most likely: they come back as others end
			switch there, _ := socketFD(f.listener, readable); {
			case !there:
				waiting = time.Time{}
			case waiting.IsZero():
				waiting = time.Now()
				s.log.Warn("a machine has to wait: its connection can't be accepted", "fork", f.id, "error", err)
			case time.Since(waiting) > acceptPatience:
				s.failFork(f, fmt.Errorf("a machine has connected and can't be accepted: %w", err), nil)
				return
			}
			time.Sleep(acceptPause)
			<-slots
			continue
		}
		waiting = time.Time{}
		go func() {
			defer func() { <-slots }()
			s.greet(f, conn)
		}()
	}
}

// greet shakes hands with one who has connected.
func (s *server) greet(f *fork, conn *net.UnixConn) {
	peer, err := socketFD(conn, peerOf)
	if peer == nil {
		s.log.Warn("turned away a connection", "fork", f.id, "error", err)
		conn.Close()
		return
	}
	if peer.uid == f.uid && err != nil {
		s.failFork(f, err, peer)
		conn.Close()
		return
	}
	if peer.uid != f.uid {
		s.log.Warn("turned away a connection of the wrong user", "fork", f.id, "uid", peer.uid, "pid", peer.pid, "want", f.uid)
		peer.close()
		conn.Close()
		return
	}
	regions, fd, err := s.handshake(conn)
	switch {
	case errors.Is(err, errSilent):
		s.log.Warn("turned away a connection that said nothing", "fork", f.id, "pid", peer.pid)
	case err == nil:
		if err = s.connect(f, conn, peer, regions, fd); err == nil {
			return
		}
		s.log.Warn("ended a machine that connected in vain", "fork", f.id, "pid", peer.pid, "error", err)
	default:
		err = fmt.Errorf("the machine's process %d has connected, but what it said is wrong: %w", peer.pid, err)
		// It would wait for its memory forever.
		s.failFork(f, err, peer)
	}
	conn.Close()
	peer.close()
}

var errSilent = errors.New("it said nothing")

// handshake receives the one message of a machine.
func (s *server) handshake(conn *net.UnixConn) ([]region, uffd.FD, error) {
	if err := conn.SetReadDeadline(time.Now().Add(handshakePatience)); err != nil {
		return nil, -1, err
	}
	buf, oob := make([]byte, maxHandshake+1), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
	fds, parseErr := descriptors(oob[:oobn])
	if n == 0 && len(fds) == 0 {
		return nil, -1, errSilent
	}
	if err == nil {
		err = parseErr
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("its descriptors can't be received: there are too many, or this pager has none left (ulimit -n)")
	}
	var regions []region
	if err == nil {
		regions, err = parseRegions(buf[:n], s.source.h.Size, uint64(os.Getpagesize()))
	}
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("%d descriptors came with it: need one, a userfaultfd", len(fds))
	}
	if err == nil {
		err = uffd.Check(fds[0])
	}
	if err != nil {
		closeAll(fds)
		return nil, -1, err
	}
	return regions, uffd.FD(fds[0]), nil
}

// connect begins to serve a machine. After an error its process is dead, or at
// least will read nothing.
func (s *server) connect(f *fork, conn *net.UnixConn, peer *process, regions []region, fd uffd.FD) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	m := &machine{
		fork: f.id, source: s.source, keeps: f.keeps, layout: regions, process: peer, ctx: ctx, cancel: cancel, fd: fd, pending: map[int64]*bool{},
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
	s.tell(message{Op: eventFailed, Fork: f.id, Error: f.err.Error()})
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
	f.listener.Close() // and removes the socket
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
