package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// PageServer serves the memory of snapshots to VMMs by userfaultfd. All forks of a snapshot share what serves it.
type PageServer interface {
	// Acquire returns the socket on which a fork's memory is served, to a VMM of the given user alone. failed is called when the memory can't be had any more:
	// by then the VMM, if it had connected, has been killed. That happens once at most.
	Acquire(ctx context.Context, snap *snapshot.Snapshot, fork string, user int, ahead snapshot.Pages, failed func(error)) (socket string, err error)
	// Release ends that. It may be called more than once.
	Release(fork string) error
}

// served is memory that a [PageServer] serves.
type served struct {
	socket string
	failed chan struct{} // closed when the sandbox knows why its memory can't be had any more
	waited sync.Once
}

// await gives the reason of a death time to be known: a pager kills the VMM first, and tells why after that. A VMM that
// somebody else has killed looks the same, and then no reason comes: this waits only once.
func (m *served) await() {
	m.waited.Do(func() {
		select {
		case <-m.failed:
		case <-time.After(reasonDelay):
		}
	})
}

// serve has the sandbox's memory served by userfaultfd, if it is far away and the engine is one for that.
func (s *Sandbox) serve(ctx context.Context, o ResumeOptions) (bool, error) {
	h := s.host
	if h.Pages == nil || !h.Snapshots.IsFar() {
		return false, nil
	}
	engine, err := h.engine(s.meta.Engine.Name, s.meta.Engine.Version)
	if err != nil {
		return false, err
	}
	needs := vmm.NeedsOf(engine)
	if !needs.Served {
		return false, nil
	}
	if needs.MayServe != nil {
		if err := needs.MayServe(); err != nil {
			return false, err
		}
	}
	user := needs.User
	if needs.NewUser != nil {
		if s.user, err = needs.NewUser(); err != nil {
			return false, err
		}
		user = s.user.ID()
	}
	var ahead snapshot.Pages
	if !o.NoPrefetch {
		if ahead, err = h.Snapshots.Prefetch(ctx, s.parent.ID()); err != nil {
			h.Log.Warn("nothing is fetched ahead", "snapshot", s.parent.ID(), "error", err) // it is advice
		}
	}
	pages := &served{failed: make(chan struct{})}
	failed := func(reason error) {
		s.fail(fmt.Errorf("reading memory: %w", reason))
		close(pages.failed)
	}
	if pages.socket, err = h.Pages.Acquire(ctx, s.parent, s.id.String(), user, ahead.Memory(), failed); err != nil {
		return false, err
	}
	s.pages = pages
	s.before = s.parent.Memory()
	return true, nil
}
