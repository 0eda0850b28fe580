package pager

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// frames keeps verified frames in memory that is the process's own, by their
// digests, up to a limit. Those who want one frame at the same time share one
// load. A frame that is held stays what it is; nobody may hold one while waiting
// for another. The memory is given back with the process's end.
type frames struct {
	slotSize int
	arena    []byte

	mu    sync.Mutex
	freed sync.Cond
	known map[block.Digest]*slot
	slots []slot
	used  int // slots that were ever taken
	hand  int // where the search for a slot goes on
}

// slot is room for a frame.
type slot struct {
	data    []byte
	digest  block.Digest
	taken   bool // digest is known
	pins    int
	touched bool          // since the hand last passed
	ready   chan struct{} // closed when the load is over
	err     error
}

// newFrames makes room for limit bytes of frames of up to slotSize bytes. Memory
// is used as frames come.
func newFrames(limit int64, slotSize int) (*frames, error) {
	n := max(int(limit)/slotSize, minSlots)
	arena, err := unix.Mmap(-1, 0, n*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("making room for %d frames: %w", n, err)
	}
	f := &frames{slotSize: slotSize, arena: arena, known: make(map[block.Digest]*slot), slots: make([]slot, n)}
	f.freed.L = &f.mu
	return f, nil
}

// minSlots is how many frames are kept at least: those who fill hold one each.
const minSlots = 64

// get returns a frame if it is there now, held for the caller.
func (f *frames) get(digest block.Digest, size int) (*slot, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.known[digest]
	if s == nil || s.ready != nil || len(s.data) != size {
		return nil, nil
	}
	s.pins++
	s.touched = true
	return s, s.data
}

// load returns a frame of size bytes, held for the caller, reading it if it is not
// there. A failed load is not kept. The load goes on when ctx ends; only the
// waiting does not.
func (f *frames) load(ctx context.Context, digest block.Digest, size int, read func(p []byte) error) (*slot, []byte, error) {
	if size > f.slotSize {
		return nil, nil, fmt.Errorf("a frame of %d bytes: there is room for %d", size, f.slotSize)
	}
	f.mu.Lock()
	for {
		s := f.known[digest]
		if s == nil {
			if s = f.room(); s == nil {
				if err := f.wait(ctx); err != nil {
					f.mu.Unlock()
					return nil, nil, err
				}
				continue
			}
			s.digest, s.taken, s.err, s.ready = digest, true, nil, make(chan struct{})
			s.data = s.data[:size]
			f.known[digest] = s
			s.pins++ // the load's own
			go f.fill(s, read)
		}
		s.pins++
		s.touched = true
		ready := s.ready
		f.mu.Unlock()
		if ready != nil {
			select {
			case <-ready:
			case <-ctx.Done():
				f.release(s)
				return nil, nil, context.Cause(ctx)
			}
		}
		if err := s.err; err != nil {
			f.release(s)
			return nil, nil, err
		}
		if len(s.data) != size {
			f.release(s)
			return nil, nil, fmt.Errorf("frames of %d and of %d bytes have one digest", size, len(s.data))
		}
		return s, s.data, nil
	}
}

// wait returns when a slot may have become free. The lock is held.
func (f *frames) wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock() // so that it does not come between the look at ctx and Wait
		defer f.mu.Unlock()
		f.freed.Broadcast()
	})
	defer stop()
	f.freed.Wait()
	return nil
}

// fill runs a load.
func (f *frames) fill(s *slot, read func(p []byte) error) {
	err := read(s.data)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.err = err
	if err != nil {
		delete(f.known, s.digest)
		s.taken = false
	}
	f.unpin(s)
	close(s.ready)
	s.ready = nil
}

// release lets go of a frame.
func (f *frames) release(s *slot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unpin(s)
}

// unpin is release for who has the lock.
func (f *frames) unpin(s *slot) {
	if s.pins--; s.pins == 0 {
		f.freed.Signal()
	}
}

// room returns a slot for a new frame, or nil while all are held. It takes the
// first that was not touched since the hand passed it last.
func (f *frames) room() *slot {
	if f.used < len(f.slots) {
		s := &f.slots[f.used]
		start := f.used * f.slotSize
		s.data = f.arena[start : start : start+f.slotSize]
		f.used++
		return s
	}
	for range 2 * len(f.slots) {
		s := &f.slots[f.hand]
		f.hand = (f.hand + 1) % len(f.slots)
		switch {
		case s.pins > 0:
		case s.touched:
			s.touched = false
		default:
			if s.taken {
				delete(f.known, s.digest)
				s.taken = false
			}
			return s
		}
	}
	return nil
}
