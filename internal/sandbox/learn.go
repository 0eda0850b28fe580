package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/snapshot"
)

// learnTimeout bounds what is only a favour to later wakes.
const learnTimeout = 2 * time.Minute

// learn finds out what a new snapshot touches when it wakes, of memory and of its disk, for those who will wake it from afar. That it fails is no reason to fail otherwise.
func (h *Host) learn(ctx context.Context, snap *snapshot.Snapshot, p Progress) {
	if h.LazyMemory == nil {
		return
	}
	p.Phase("prefetch")
	ctx, cancel := context.WithTimeoutCause(ctx, learnTimeout, fmt.Errorf("not done in %v", learnTimeout))
	defer cancel()
	pages, err := h.touchedTwice(ctx, snap)
	if err == nil {
		err = h.Snapshots.SetPrefetch(ctx, snap.ID(), pages)
	}
	switch {
	case err == nil:
		h.Log.Debug("learned what a wake touches", "snapshot", snap.ID(), "pages", pages.Len())
	case errors.Is(err, errors.ErrUnsupported):
		h.Log.Debug("what a wake touches can't be learned here", "reason", err)
	default:
		h.Log.Warn("what a wake touches was not learned; from afar the snapshot will wake slower", "snapshot", snap.ID(), "reason", err)
	}
}

// touchedTwice returns the pages of memory and blocks of the disk that each of two wakes touches, in the order of the first: what one alone does is chance.
func (h *Host) touchedTwice(ctx context.Context, snap *snapshot.Snapshot) (snapshot.Pages, error) {
	first, err := h.Touched(ctx, snap)
	if err != nil {
		return nil, err
	}
	second, err := h.Touched(ctx, snap)
	if err != nil {
		return nil, err
	}
	return first.And(second), nil
}

// Touched wakes a snapshot and returns the pages of memory that it touches until a first command has run, in order, and after them the blocks of the disk.
func (h *Host) Touched(ctx context.Context, snap *snapshot.Snapshot) (_ snapshot.Pages, err error) {
	if h.LazyMemory == nil {
		return nil, fmt.Errorf("%w: there is nothing to serve memory page by page", errors.ErrUnsupported)
	}
	disk := &noted{Reader: snap.Disk()}
	record := func(ctx context.Context, s *Sandbox, _ ResumeOptions, _ Progress) error {
		s.noted = disk
		return s.mapLazily(ctx, LazyOptions{Record: true})
	}
	s, err := h.resume(ctx, snap, ResumeOptions{NoPrefetch: true}, record, NoProgress{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.firstCommand(ctx); err != nil {
		return nil, err
	}
	pages, err := s.lazy.Pages(ctx)
	return pages.WithDisk(disk.blocks()), err
}

// firstCommand runs the least of commands. An image may have no shell; what it takes to find that out is touched as well.
func (s *Sandbox) firstCommand(ctx context.Context) error {
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	process, err := s.Agent().Start(ctx, s.Command([]string{"/bin/sh", "-c", "exit 0"}))
	if err == nil {
		_, err = process.Wait()
	}
	var answer *guest.Error
	if errors.As(err, &answer) {
		return nil
	}
	return s.explain(ctx, err)
}
