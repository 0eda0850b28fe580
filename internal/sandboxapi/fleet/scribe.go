package fleet

import "sync"

// scribe does the fleet's writing to the database, one after the other in the order in which it was asked for. Most of it nobody waits for: a sandbox is not slower
// to come because it is counted. Whoever has to know that something is written waits for it, as save does.
type scribe struct {
	work chan func()
	done sync.WaitGroup

	mu     sync.RWMutex // held for reading while something is sent, and for writing by close
	closed bool
}

// newScribe returns one that holds so many writes; whoever brings more waits.
func newScribe() *scribe {
	s := &scribe{work: make(chan func(), 1024)}
	s.done.Go(func() {
		for f := range s.work {
			f()
		}
	})
	return s
}

// write has f run after all that came before it, and tells whether it will: not after close.
func (s *scribe) write(f func()) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	s.work <- f
	return true
}

// flush returns when all that came before it is written.
func (s *scribe) flush() {
	written := make(chan struct{})
	if s.write(func() { close(written) }) {
		<-written
	}
}

// close flushes, and ends the scribe.
func (s *scribe) close() {
	s.mu.Lock()
	s.closed = true
	close(s.work)
	s.mu.Unlock()
	s.done.Wait()
}
