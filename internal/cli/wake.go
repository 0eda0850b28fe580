package cli

import (
	"context"
	"errors"
	"time"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// waker wakes one snapshot, any number of times.
type waker struct {
	host    *sandbox.Host
	ref     string
	options sandbox.ResumeOptions
}

// woken is a running sandbox with the snapshot that it stands on.
type woken struct {
	*sandbox.Sandbox
	snap   *snapshot.Snapshot
	phases sandbox.Phases // with the opening of the snapshot
}

// Close ends the sandbox.
func (w *woken) Close() error { return errors.Join(w.Sandbox.Close(), w.snap.Close()) }

// wake opens the snapshot and resumes it.
func (w waker) wake(ctx context.Context, p sandbox.Progress) (*woken, error) {
	begin := time.Now()
	snap, err := w.host.Snapshots.Open(ctx, w.ref)
	if err != nil {
		return nil, err
	}
	opened := time.Since(begin)
	s, err := w.host.Resume(ctx, snap, w.options, p)
	if err != nil {
		return nil, errors.Join(err, snap.Close())
	}
	phases := s.Phases()
	phases.Open += opened
	phases.Total += opened
	return &woken{Sandbox: s, snap: snap, phases: phases}, nil
}
