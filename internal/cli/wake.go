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
	app     *app
	owner   ownerFlags
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

// Metadata implements machine.
func (w *woken) Metadata() *snapshot.Metadata { return w.snap.Metadata() }

// Took implements machine.
func (w *woken) Took() time.Duration { return w.phases.Total }

// Close ends the sandbox.
func (w *woken) Close() error { return errors.Join(w.Sandbox.Close(), w.snap.Close()) }

// start opens the snapshot and has it woken by the daemon, or in this process where no daemon runs that knows it.
func (w waker) start(ctx context.Context, p sandbox.Progress) (machine, error) {
	begin := time.Now()
	snap, err := w.host.Snapshots.Open(ctx, w.ref)
	if err != nil {
		return nil, err
	}
	daemon, template, err := w.daemon(ctx, snap)
	if err != nil {
		return nil, errors.Join(err, snap.Close())
	}
	// A pointer that is nil would be a machine that is not.
	if daemon != nil {
		s, err := w.lease(ctx, daemon, template, snap)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	s, err := w.resume(ctx, snap, begin, p)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// wake opens the snapshot and resumes it in this process.
func (w waker) wake(ctx context.Context, p sandbox.Progress) (*woken, error) {
	begin := time.Now()
	snap, err := w.host.Snapshots.Open(ctx, w.ref)
	if err != nil {
		return nil, err
	}
	return w.resume(ctx, snap, begin, p)
}

// resume resumes a snapshot that was opened since begin, and takes it over; after an error, too.
func (w waker) resume(ctx context.Context, snap *snapshot.Snapshot, begin time.Time, p sandbox.Progress) (*woken, error) {
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
