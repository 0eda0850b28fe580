package agent

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/sporevm/spore/internal/guest/api/process"
)

// chunkSize is how much output is read and sent at once, if there is as much. A
// pipe holds as much, too.
const chunkSize = 256 << 10

// queueDepth is how many chunks may wait for one follower. When they do, the
// process itself waits: a flood costs no memory.
const queueDepth = 4

// chunk is a piece of output on its way to every follower.
type chunk struct {
	event process.ProcessEvent
	buf   []byte
	refs  atomic.Int32
}

var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, chunkSize)} }}

// newChunk returns a chunk that its maker holds.
func newChunk() *chunk {
	c := chunks.Get().(*chunk)
	c.refs.Store(1)
	return c
}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		chunks.Put(c)
	}
}

// hub hands the output of one process to those who follow it.
type hub struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
}

// follower is one stream that wants the output.
type follower struct {
	chunks chan *chunk
	gone   <-chan struct{} // closed when the client has left
}

func newHub() *hub { return &hub{followers: map[*follower]struct{}{}} }

// follow adds a follower until ctx ends or leave is called.
func (h *hub) follow(ctx context.Context) (f *follower, leave func()) {
	f = &follower{chunks: make(chan *chunk, queueDepth), gone: ctx.Done()}
	h.mu.Lock()
	h.followers[f] = struct{}{}
	h.mu.Unlock()
	return f, func() {
		h.mu.Lock()
		delete(h.followers, f)
		h.mu.Unlock()
	}
}

// publish gives c to every follower, waiting for those that are behind, and
// lets go of it. With nobody there the output is dropped: a process that no one
// watches must not stall.
func (h *hub) publish(c *chunk) {
	h.mu.Lock()
	to := make([]*follower, 0, len(h.followers))
	for f := range h.followers {
		to = append(to, f)
	}
	h.mu.Unlock()
	for _, f := range to {
		c.refs.Add(1)
		select {
		case f.chunks <- c:
		case <-f.gone:
			c.release()
		}
	}
	c.release()
}
