package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// aheadPatience is how long the end of a sandbox waits for reads that are under way ahead of any use. What is far away may hang.
const aheadPatience = 5 * time.Second

// fetchDisk starts to fetch what the guest is known to read of its disk once it is awake. It ends with the returned function, at the latest.
func (h *Host) fetchDisk(snap *snapshot.Snapshot) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background()) // ended by stop, not by the request that woke the machine
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, err := h.Snapshots.FetchDisk(ctx, snap)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			h.Log.Warn("not all that is known to be read of the disk was fetched ahead", "snapshot", snap.ID(), "error", err) // it is advice
		default:
			h.Log.Debug("disk fetched ahead of its use", "snapshot", snap.ID(), "bytes", n)
		}
	}()
	return func() {
		cancel()
		select {
		case <-done:
		case <-time.After(aheadPatience):
		}
	}
}

// noted is a snapshot's disk that keeps account of what is read of it.
type noted struct {
	*block.Reader

	mu   sync.Mutex
	seen block.Set
	read snapshot.Pages
}

// ReadAt implements [expose.Base].
func (n *noted) ReadAt(p []byte, offset int64) (int, error) {
	n.note(offset, int64(len(p)))
	return n.Reader.ReadAt(p, offset)
}

// note keeps account of blocks that are stored, in the order in which they are read first.
func (n *noted) note(offset, length int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for run := range n.Header().RunsIn(offset, length) {
		if run.IsHole() {
			continue
		}
		for b := run.Offset / block.DefaultBlockSize; b*block.DefaultBlockSize < run.End(); b++ {
			if !n.seen.Contains(b) {
				n.seen.Add(b, 1)
				n.read.Add(b)
			}
		}
	}
}

// blocks are those that were read so far.
func (n *noted) blocks() snapshot.Pages {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append(snapshot.Pages{}, n.read...)
}
