package cli

import (
	"context"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// wakes says how machines of a snapshot come to their memory on this host, and why so.
type wakes struct {
	Memory   string `json:"memory"` // mapped, lazy or served
	Why      string `json:"why"`
	Prefetch int64  `json:"prefetch_bytes"`      // known to be touched, and from afar fetched before they are; 0: nothing is known
	Disk     int64  `json:"prefetch_disk_bytes"` // the same of the disk
}

// The ways to memory. A mapped file is the quickest by far where memory is near: a fault costs no switch to another process, and what is clean is shared.
const (
	wakesMapped = "mapped" // a file, laid out once, that all machines map privately
	wakesLazy   = "lazy"   // a file whose pages come when they are touched
	wakesServed = "served" // by userfaultfd, from one pager for all machines of the snapshot
)

// String is the line of the dashboard.
func (w wakes) String() string {
	text, disk := w.Memory+" memory: "+w.Why, ""
	if w.Disk > 0 {
		disk = " and " + formatBytes(w.Disk) + " of the disk"
	}
	switch {
	case w.Prefetch == 0:
	case w.Memory == wakesMapped:
		text += "; from a bucket " + formatBytes(w.Prefetch) + disk + " would be fetched ahead"
	default:
		text += ", " + formatBytes(w.Prefetch) + " of it" + disk + " ahead"
	}
	return text
}

// wakesHere tells how a snapshot would wake; nil if it is a disk alone.
func wakesHere(ctx context.Context, repo *snapshot.Repo, s *snapshot.Snapshot) (*wakes, error) {
	m := s.Metadata()
	if !m.HasMemory() {
		return nil, nil
	}
	w := &wakes{Memory: wakesLazy, Why: "the store is far, so pages come when they are touched"}
	switch {
	case !repo.IsFar():
		w.Memory, w.Why = wakesMapped, "the store is on this host, so it is laid out once and shared through the page cache"
	case m.Engine.Name == firecracker.Name:
		w.Memory, w.Why = wakesServed, "the store is far and the engine handles page faults, so one pager serves all machines of the snapshot"
	}
	ahead, err := repo.Prefetch(ctx, m.ID)
	if err != nil && !is[*snapshot.CorruptError](err) { // a damaged list is as good as none
		return nil, err
	}
	w.Prefetch, w.Disk = ahead.Memory().Size(), ahead.Disk().Size()
	return w, nil
}
