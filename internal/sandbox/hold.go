package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
)

// Hold makes the machine stand still in memory: no CPU of it runs, and it costs nothing but its pages. Only Release and Close are of use then. What keeps it
// from being a snapshot is that nothing is saved; what makes it quick to let go is that nothing has to be loaded.
//
// User processes are frozen before the CPUs stop, so that none runs before Release has told the guest what time it is and who it is. A failure leaves the
// machine running, or ends it.
func (s *Sandbox) Hold(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.pausable(PauseSpec{}); err != nil {
		return err
	}
	s.session.Lock()
	defer s.session.Unlock()
	if _, err := s.still(ctx, api.QuiesceOptions{}); err != nil {
		return err
	}
	whole, done := uninterrupted()
	defer done()
	err := s.park(whole)
	if err == nil {
		err = s.machine.Stop(whole)
	}
	if err != nil {
		s.fail(fmt.Errorf("stopping the machine: %w", err))
		return s.explain(ctx, err)
	}
	s.held = true
	return nil
}

// park replaces the session of a still guest by one at whose beginning the guest waits for its next wake: ahead of HTTP/2 that costs an emulated guest a
// fraction of what a request does.
func (s *Sandbox) park(ctx context.Context) error {
	s.client.Close()
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	conn, err := s.machine.Dial(ctx)
	if err != nil {
		return err
	}
	s.client = guest.NewClient(conn)
	return s.hand(ctx, s.client.WakeStill)
}

// releaseTimeout bounds what takes a warm guest some milliseconds, unless the host is busy.
const releaseTimeout = 60 * time.Second

// Release lets a held machine run, with env added to the environment of what is started from now on. When it returns the guest has confirmed its clock, its
// fresh entropy and a new generation, and its user processes run. A machine that can't be released is ended.
func (s *Sandbox) Release(ctx context.Context, env map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return errors.New("the sandbox is not held")
	}
	s.addEnv(env)
	ctx, done := context.WithTimeoutCause(ctx, releaseTimeout, fmt.Errorf("no answer from its agent in %v", releaseTimeout))
	defer done()
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	// The identity is sent meanwhile, so that the guest finds it there.
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.machine.Continue(ctx) })
	group.Go(func() error { return s.hand(ctx, s.client.WakeWarm) })
	if err := group.Wait(); err != nil {
		err = s.explain(ctx, fmt.Errorf("releasing the machine: %w", err))
		s.fail(err)
		return err
	}
	s.held = false
	return nil
}

// addEnv adds to the environment that the guest is told of by its next wake. The map of the snapshot's metadata is not ours to change.
func (s *Sandbox) addEnv(env map[string]string) {
	if len(env) == 0 {
		return
	}
	all := maps.Clone(s.meta.Context.Env)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, env)
	s.meta.Context.Env = all
}
