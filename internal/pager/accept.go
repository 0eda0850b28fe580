package pager

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager/uffd"
)

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
		f.work.Go(func() {
			defer func() { <-slots }()
			s.receive(f, conn)
		})
	}
}

// receive greets one who has connected. Once the fork is released only what was said
// before counts: who has handed over its memory is not to be forgotten.
func (s *server) receive(f *fork, conn *net.UnixConn) {
	s.mu.Lock()
	f.greeting[conn] = true
	released := f.released
	s.mu.Unlock()
	if released {
		conn.CloseRead()
	}
	s.greet(f, conn)
	s.mu.Lock()
	delete(f.greeting, conn)
	s.mu.Unlock()
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

// drain receives those who wait at a socket that is about to be closed.
func (s *server) drain(f *fork) {
	os.Remove(f.path) // nobody comes any more
	for {
		fd, err := socketFD(f.listener, func(fd int) (int, error) {
			fd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return fd, err
		})
		if err != nil {
			return // nobody is there, or it is closed already
		}
		if conn, err := connection(os.NewFile(uintptr(fd), f.path)); err == nil {
			s.receive(f, conn)
		}
	}
}
