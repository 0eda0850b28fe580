package fleet

import "sync"

// scribe writes down, in order and a moment later, what nobody has to wait for: a sandbox is not slower to come because it is counted. What decides what a
// sandbox is, is not written so.
type scribe struct {
	work chan func()
	done sync.WaitGroup

	mu     sync.RWMutex // held for reading while something is sent, and for writing by close
	closed bool
}

// newScribe returns one that has room for some that is to be written; who brings more waits.
func newScribe() *scribe {
	s := &scribe{work: make(chan func(), 1024)}
	s.done.Go(func() {
		for f := range s.work {
			f()
		}
	})
	return s
}

// write has f run, after all that was to be written before, and tells whether it will: not after close.
func (s *scribe) write(f func()) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	s.work <- f
	return true
}

// flush returns when all is written that was to be before.
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
