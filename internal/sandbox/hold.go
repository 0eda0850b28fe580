package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/sporevm/spore/internal/guest/api"
)

// Hold makes the machine stand still in memory: no CPU of it runs, and it costs nothing but its pages. Only Release and Close are of use then. What keeps it
// from being a snapshot is that nothing is saved; what makes it quick to let go is that nothing has to be loaded.
//
// User processes are frozen before the CPUs stop, so that none runs before Release has told the guest what time it is and who it is.
// A failure leaves the machine running.
func (s *Sandbox) Hold(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.pausable(PauseSpec{}); err != nil {
		return err
	}
	if _, err := s.still(ctx, api.QuiesceOptions{}); err != nil {
		return err
	}
	whole, done := uninterrupted()
	defer done()
	if err := s.machine.Stop(whole); err != nil {
		s.fail(fmt.Errorf("stopping the machine: %w", err))
		return s.explain(ctx, err)
	}
	s.held = true
	return nil
}

// releaseTimeout bounds what takes a warm guest some milliseconds.
const releaseTimeout = 10 * time.Second

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
	err := s.machine.Continue(ctx)
	if err == nil {
		err = s.hand(ctx, s.client.WakeWarm)
	}
	if err != nil {
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
