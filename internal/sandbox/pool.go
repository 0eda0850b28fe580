package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/snapshot"
)

// PoolOptions say what a pool keeps ready.
type PoolOptions struct {
	Size   int    // sandboxes that are to wait
	Warmup string // command line that each runs once before it waits; empty: only what every wake runs
	Resume ResumeOptions

	// Room tells whether the host has room for one more that waits. Nil: always. While it has none the pool makes none, and gives up those that it has.
	Room func() bool
}

// Pauses of a pool's work, in which it looks around.
const (
	// A sandbox that was just taken runs its first command: making its successor can wait a moment, unless nobody waits any more.
	refillDelay = 100 * time.Millisecond
	// How soon a pool tries again after a failure, or looks again for room.
	refillRetry = 2 * time.Second
	// exercises is how often a sandbox stands still and goes on before it waits: an emulator translates some of what that runs only when it has seen it before.
	exercises = 3
	// warmupTimeout bounds what a sandbox runs before it waits.
	warmupTimeout = 5 * time.Minute
)

// Pool keeps sandboxes of one template waiting: restored, exercised once, so that the code that a wake and a command run is translated and its pages are
// there, and stopped. Taking one is a matter of letting it go on.
type Pool struct {
	host   *Host
	snap   *snapshot.Snapshot
	o      PoolOptions
	cancel context.CancelFunc
	done   chan struct{}
	wanted chan struct{} // has an element when there is something to do

	mu    sync.Mutex
	ready []*Sandbox
	stats PoolStats
	err   error // of the last try to make one
}

// PoolStats are a pool's counters.
type PoolStats struct {
	Ready, Size  int
	Hits, Misses int64
	Failed       int64 // sandboxes that could not be made
	Lost         int64 // that died while they waited
	Drained      int64 // that were given up for want of room
}

// NewPool starts filling a pool. The caller keeps snap open until Close has returned.
func (h *Host) NewPool(snap *snapshot.Snapshot, o PoolOptions) *Pool {
	if o.Room == nil {
		o.Room = func() bool { return true }
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by Close
	p := &Pool{host: h, snap: snap, o: o, cancel: cancel, done: make(chan struct{}), wanted: make(chan struct{}, 1)}
	p.stats.Size = o.Size
	go p.work(ctx)
	return p
}

// Take returns a sandbox that runs, or nil when none waits: then the caller wakes one itself. Env is added to the environment of what is started in it, and
// policy is in force before it goes on.
func (p *Pool) Take(ctx context.Context, env map[string]string, policy network.Policy) (*Sandbox, error) {
	for {
		s := p.pop()
		if s == nil {
			return nil, nil
		}
		err := s.restrict(policy)
		if err == nil {
			err = s.Release(ctx, env)
		}
		if err == nil {
			return s, nil
		}
		err = errors.Join(err, s.Close())
		if ctx.Err() != nil {
			return nil, err
		}
		p.host.Log.Warn("a waiting sandbox could not go on", "sandbox", s.ID(), "error", err)
		p.count(func(c *PoolStats) { c.Lost++ })
	}
}

// pop takes a sandbox that lives, and has the pool make its successor.
func (p *Pool) pop() *Sandbox {
	defer p.poke()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		p.stats.Misses++
		return nil
	}
	s := p.ready[0] // the longest there: whoever dies of waiting shows early
	p.ready = p.ready[1:]
	p.stats.Hits++
	return s
}

func (p *Pool) count(f func(*PoolStats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.stats)
}

// Stats returns the counters.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Ready = len(p.ready)
	return s
}

// Wait waits until the pool is full, or until making a sandbox has failed, which is the error.
func (p *Pool) Wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		full, err := len(p.ready) >= p.o.Size, p.err
		p.mu.Unlock()
		if full || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return errors.New("the pool is closed")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Drain gives up to n waiting sandboxes up and returns how many those were. The pool makes new ones when there is room again.
func (p *Pool) Drain(n int) int {
	p.mu.Lock()
	n = min(n, len(p.ready))
	gone := p.ready[len(p.ready)-n:]
	p.ready = p.ready[:len(p.ready)-n]
	p.stats.Drained += int64(n)
	p.mu.Unlock()
	p.end(gone)
	return n
}

// Close ends the waiting sandboxes and the making of new ones.
func (p *Pool) Close() error {
	p.cancel()
	<-p.done
	p.mu.Lock()
	gone := p.ready
	p.ready = nil
	p.mu.Unlock()
	return p.end(gone)
}

func (p *Pool) end(gone []*Sandbox) error {
	var errs []error
	for _, s := range gone {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// poke has the work looked at.
func (p *Pool) poke() {
	select {
	case p.wanted <- struct{}{}:
	default:
	}
}

// work keeps the pool full until ctx ends.
func (p *Pool) work(ctx context.Context) {
	defer close(p.done)
	for ctx.Err() == nil {
		p.dropDead()
		var pause time.Duration
		switch missing := p.missing(); {
		case !p.o.Room():
			p.Drain(p.o.Size)
			pause = refillRetry
		case missing == 0:
			pause = refillRetry // to notice deaths, and a want of room
		default:
			if pause = 0; p.add(ctx) != nil {
				pause = refillRetry
			}
		}
		p.rest(ctx, pause)
	}
}

// rest waits for d, or until a sandbox was taken.
func (p *Pool) rest(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return
	case <-ctx.Done():
		return
	case <-p.wanted:
	}
	for p.missing() < p.o.Size { // others wait: a burst is let through first
		quiet := time.NewTimer(refillDelay)
		select {
		case <-quiet.C:
			return
		case <-ctx.Done():
			quiet.Stop()
			return
		case <-p.wanted:
			quiet.Stop()
		}
	}
}

func (p *Pool) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.o.Size-len(p.ready))
}

// dropDead forgets sandboxes whose machine has ended.
func (p *Pool) dropDead() {
	var dead, alive []*Sandbox
	p.mu.Lock()
	for _, s := range p.ready {
		select {
		case <-s.Done():
			dead = append(dead, s)
		default:
			alive = append(alive, s)
		}
	}
	p.ready = alive
	p.stats.Lost += int64(len(dead))
	p.mu.Unlock()
	for _, s := range dead {
		p.host.Log.Warn("a waiting sandbox has died", "sandbox", s.ID(), "error", s.Err())
	}
	p.end(dead)
}

// add makes one sandbox that waits.
func (p *Pool) add(ctx context.Context) error {
	s, err := p.make(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() == nil {
		p.err = err
	}
	if err != nil {
		if ctx.Err() == nil {
			p.stats.Failed++
			p.host.Log.Warn("a pool's sandbox could not be made", "snapshot", p.snap.ID(), "error", err)
		}
		return err
	}
	p.ready = append(p.ready, s)
	return nil
}

// make wakes a sandbox, exercises it and stops it.
func (p *Pool) make(ctx context.Context) (_ *Sandbox, err error) {
	s, err := p.host.Resume(ctx, p.snap, p.o.Resume, NoProgress{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	timed, cancel := context.WithTimeout(ctx, warmupTimeout)
	defer cancel()
	if err := s.exercise(timed, p.o.Warmup); err != nil {
		return nil, err
	}
	return s, s.Hold(timed)
}

// exercise runs once what the next user of the sandbox will run: a command in the shell, if there is one, and the going on after standing still. It is all
// the same whether the command succeeds.
func (s *Sandbox) exercise(ctx context.Context, warmup string) error {
	if warmup == "" {
		warmup = "true"
	}
	if _, err := s.Run(ctx, s.Command(shell(warmup))); err != nil && (s.Err() != nil || ctx.Err() != nil) {
		return err
	}
	for range exercises {
		if err := s.Hold(ctx); err != nil {
			return err
		}
		if err := s.Release(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}
