package pager

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/sporevm/spore/internal/block"
)

// acceptTrackers receives Trackers, one after another: this process's owner, and,
// should that die, the one that comes in its place.
func (s *server) acceptTrackers() {
	for {
		conn, err := s.control.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors: there may be some later
			time.Sleep(acceptPause)
			continue
		}
		peer, err := socketFD(conn, peerOf)
		if peer == nil {
			s.log.Warn("turned away a control connection", "error", err)
			conn.Close()
			continue
		}
		peer.close()
		if peer.uid != os.Geteuid() {
			s.log.Warn("turned away a control connection of the wrong user", "uid", peer.uid, "pid", peer.pid)
			conn.Close()
			continue
		}
		go s.obey(newWire(conn))
	}
}

// obey does what a Tracker asks until it is gone.
func (s *server) obey(w *wire) {
	defer w.conn.Close()
	s.mu.Lock()
	if s.closing || (s.tracker != nil && !s.tracker.isOver()) {
		s.mu.Unlock()
		_ = w.conn.SetReadDeadline(time.Now().Add(helloPatience))
		if m, err := w.receive(); err == nil { // or else the end of the connection would overtake the answer
			_ = w.send(message{ID: m.ID, Op: opHello, Error: &block.Told{Text: "it has a tracker, or is ending"}})
		}
		return
	}
	s.tracker = w
	s.orphaned.Stop()
	s.mu.Unlock()
	for {
		m, err := w.receive()
		if err != nil {
			break
		}
		if m.Op == opHello {
			s.hello(w, m)
			continue
		}
		go func() {
			if err := w.send(s.answer(m)); err != nil {
				s.log.Warn("the tracker can't be answered", "op", m.Op, "error", err)
			}
			if m.Op == opClose {
				s.end()
			}
		}()
	}
	s.mu.Lock()
	if s.tracker == w {
		s.tracker = nil
	}
	s.maybeOrphaned()
	s.mu.Unlock()
}

// maybeOrphaned gives a pager that nobody needs some time before it ends. The lock
// is held.
func (s *server) maybeOrphaned() {
	if s.tracker != nil || s.closing {
		return
	}
	for _, f := range s.forks {
		if f.machine != nil {
			return
		}
	}
	s.orphaned.Reset(s.grace)
}

// hello tells a Tracker all that there is.
func (s *server) hello(w *wire, m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.forks {
		s.tell(message{Op: eventFork, Fork: f.id, UID: f.uid, Path: f.path, Error: block.Tell(f.err)})
		if f.machine != nil {
			s.tell(message{Op: eventConnected, Fork: f.id, PID: f.machine.process.pid, process: f.machine.process})
		}
	}
	s.tell(m)
}

// tell sends a message to the Tracker if there is one. The lock is held. A Tracker
// that does not listen learns it all when it connects again.
func (s *server) tell(m message) {
	if s.tracker != nil {
		if err := s.tracker.send(m); err != nil {
			s.log.Warn("the tracker can't be told", "op", m.Op, "error", err)
		}
	}
}

func (s *server) answer(m message) message {
	a := message{ID: m.ID, Op: m.Op, Fork: m.Fork}
	var err error
	switch m.Op {
	case opRegister:
		a.Path, err = s.register(m.Fork, m.UID)
	case opPrefetch:
		err = s.prefetch(m.Fork, m.Ranges)
	case opRelease:
		s.mu.Lock()
		f := s.forks[m.Fork]
		s.mu.Unlock()
		if f != nil {
			err = s.dismiss(f)
		}
	case opTouched:
		a.Ranges, a.More, err = s.touched(m.Fork, m.From)
	case opStats:
		a.Stats = s.stats()
	case opClose:
	default:
		err = fmt.Errorf("this pager does not know the operation %q", m.Op)
	}
	a.Error = block.Tell(err)
	return a
}

// prefetch lengthens the list of a fork that has not connected.
func (s *server) prefetch(id string, ranges []Range) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.forks[id]
	if f == nil || f.conn != nil || len(f.prefetch)+len(ranges) > maxRanges {
		return fmt.Errorf("fork %s takes no more to prefetch", id)
	}
	f.prefetch = append(f.prefetch, ranges...)
	return nil
}

// touched returns some of what a fork's machine has touched.
func (s *server) touched(id string, from int) (ranges []Range, more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.forks[id]
	if f == nil || f.machine == nil {
		return nil, false, fmt.Errorf("fork %s has no machine", id)
	}
	f.machine.seenMu.Lock()
	defer f.machine.seenMu.Unlock()
	all := f.machine.touched
	from = min(max(from, 0), len(all))
	to := min(from+rangeBatch, len(all))
	return slices.Clone(all[from:to]), to < len(all), nil
}

func (s *server) stats() *Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Stats{Forks: len(s.forks), Faults: s.faults.Load(), FramesRead: s.source.reads.Load(), Prefetched: s.source.prefetched.Load(),
		Prefetching: time.Duration(s.source.prefetching.Load()), PID: os.Getpid()}
	for _, f := range s.forks {
		if f.machine != nil {
			st.Connected++
		}
	}
	return st
}
