package snapshot

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// Squash publishes in r the snapshot id with what s holds, s being of any
// repository, in a single layer: it needs no other. Its origin is s. Every frame
// that is read is verified.
//
// progress, which may be nil, hears how much of how many bytes of disk and memory
// is done.
func (r *Repo) Squash(ctx context.Context, id uuid.UUID, s *Snapshot, codec block.Codec, progress func(done, total int64)) (*Snapshot, error) {
	d, err := r.NewDraft(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	d.Codec = codec
	var done, total int64
	for _, image := range []*block.Reader{s.disk, s.memory} {
		if image != nil {
			total += image.Header().Usage().Data()
		}
	}
	report := func(n int64) {
		done += n
		if progress != nil {
			progress(done, total)
		}
	}
	report(0)
	w, err := d.FreshDisk(s.meta.DiskBytes)
	if err == nil {
		err = s.disk.Squash(ctx, w, report)
	}
	if err != nil {
		return nil, fmt.Errorf("squashing snapshot %s: %w", s.meta.ID, err)
	}
	if s.memory != nil {
		if err := d.squashMemory(ctx, s, report); err != nil {
			return nil, fmt.Errorf("squashing snapshot %s: %w", s.meta.ID, err)
		}
	}
	m := *s.meta
	m.Origin, m.Created = s.meta.ID, time.Now()
	m.Labels = maps.Clone(m.Labels)
	squashed, err := d.Commit(ctx, m)
	if err != nil {
		return nil, err
	}
	r.inheritPrefetch(ctx, id, s)
	return squashed, nil
}

func (d *Draft) squashMemory(ctx context.Context, s *Snapshot, report func(n int64)) error {
	state, err := s.State(ctx)
	if err != nil {
		return err
	}
	if err := d.State(state); err != nil {
		return err
	}
	d.MemoryBlockSize = s.memory.Header().BlockSize
	w, err := d.FreshMemory(s.meta.MemoryBytes)
	if err != nil {
		return err
	}
	return s.memory.Squash(ctx, w, report)
}
