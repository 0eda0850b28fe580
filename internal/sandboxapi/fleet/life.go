package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/store"
)

// Patience of the daemon's own work on a sandbox, which no request bounds.
const (
	pauseTimeout = 10 * time.Minute
	pauseRetry   = 30 * time.Second
)

// Agent returns the session with a sandbox's agent. One that sleeps is woken if it is to be by a request; else the error is of the kind Conflict. Errors are
// also of the kinds NotFound, Gone and Busy.
func (f *Fleet) Agent(ctx context.Context, id string) (*guest.Client, error) {
	for {
		e, err := f.living(id)
		if err != nil {
			return nil, err
		}
		e.mu.Lock()
		live, info := e.live, e.info
		e.mu.Unlock()
		switch {
		case live != nil:
			if client := live.Agent(); client != nil {
				return client, nil
			}
			// It was just paused; what it is now is known when whoever did that is done.
			if err := e.take(ctx); err != nil {
				return nil, err
			}
			e.give()
			continue
		case info.State == Paused && !info.AutoResume:
			return nil, paused(id)
		}
		// As the platform has it: as long as it was made for, and not too short for a client that goes on asking.
		if _, _, err := f.Connect(ctx, id, min(max(info.Timeout, f.o.DefaultTimeout), f.o.MaxTimeout)); err != nil {
			return nil, err
		}
	}
}

func paused(id string) error {
	return &Error{Kind: Conflict, Message: fmt.Sprintf("sandbox %s is paused", id), Hint: "connect to it, or resume it, first"}
}

// Kill ends a sandbox, whatever it is doing, and all that it has left behind. The error is of the kind NotFound if there is none, or it is dead.
func (f *Fleet) Kill(ctx context.Context, id string) error {
	e, err := f.ours(ctx, id)
	if err != nil {
		if KindOf(err) == Gone {
			return unknown(id)
		}
		return err
	}
	defer e.give()
	return f.die(context.WithoutCancel(ctx), e, "it was killed")
}

// die ends a sandbox. The caller holds the turn.
func (f *Fleet) die(ctx context.Context, e *entry, reason string) error {
	live, t := f.takeDown(e)
	var log string
	if live != nil {
		log = live.Log()
	}
	own := e.record().Own
	err := f.change(ctx, e, func(e *entry) {
		e.info.State, e.info.Reason, e.own, e.pausing, e.series = Dead, reason, nil, uuid.Nil, nil
	})
	if live != nil {
		if failed := live.Close(); failed != nil {
			f.o.Log.Warn("ending a machine", "sandbox", e.id, "error", failed)
		}
		f.letGoAll(ctx, t)
	}
	if len(own) > 0 {
		// Others may stand on what it slept as, but its name is to keep nothing.
		if failed := f.host.Snapshots.Untag(ctx, sleepName(e.id)); failed != nil && !errors.Is(failed, store.ErrNoName) {
			f.o.Log.Warn("forgetting a name", "sandbox", e.id, "error", failed)
		}
		f.discard(ctx, own)
	}
	f.note(e.id, slog.LevelInfo, reason, nil)
	if log != "" { // what a guest prints is its owner's, and nothing for the daemon's log
		f.keep(e.id, slog.LevelInfo, "the end of its console", map[string]string{"console": log})
	}
	f.trim(ctx, e.id)
	return err
}

// takeDown takes the machine away from a sandbox. The caller holds the turn, and closes it.
func (f *Fleet) takeDown(e *entry) (*sandbox.Sandbox, *template) {
	e.mu.Lock()
	defer e.mu.Unlock()
	live, t := e.live, e.template
	e.live, e.template = nil, nil
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	return live, t
}

// letGoAll lets go of a template, and removes it if it was made for forks only and this was the last.
func (f *Fleet) letGoAll(ctx context.Context, t *template) {
	purpose := t.snap.Metadata().Labels[labelPurpose]
	if err := f.letGo(t); err != nil {
		f.o.Log.Warn("closing a snapshot", "snapshot", t.id, "error", err)
	}
	if purpose == purposeFork && f.forks(t.id) == 0 {
		f.discard(ctx, []uuid.UUID{t.id})
	}
}

// mourn waits for the end of a machine, and if nobody of ours has ended it the sandbox is dead.
func (f *Fleet) mourn(e *entry, live *sandbox.Sandbox) {
	<-live.Done()
	ctx := context.Background()
	_ = e.take(ctx)
	defer e.give()
	e.mu.Lock()
	ours := e.live == live
	e.mu.Unlock()
	if !ours {
		return
	}
	reason := "its machine has ended"
	if err := live.Err(); err != nil {
		// Below the first line are the machine's last words. The reason is told to whoever asks for one of its ports; those are for its owner.
		reason, _, _ = strings.Cut(err.Error(), "\n")
		e.mu.Lock()
		e.info.Damaged = IsDamage(err)
		e.mu.Unlock()
	}
	if err := f.die(ctx, e, reason); err != nil {
		f.o.Log.Error("a sandbox has died", "sandbox", e.id, "error", err)
	}
}

// timeUp does with a sandbox what is to be done when its time is up, unless it was given more.
func (f *Fleet) timeUp(e *entry) {
	ctx, cancel := context.WithTimeout(context.Background(), pauseTimeout)
	defer cancel()
	if e.take(ctx) != nil {
		return
	}
	defer e.give()
	e.mu.Lock()
	if e.timer == nil { // it runs no more
		e.mu.Unlock()
		return
	}
	if left := time.Until(e.info.End); left > 0 {
		e.timer.Reset(left)
		e.mu.Unlock()
		return
	}
	action := e.info.OnTimeout
	e.mu.Unlock()
	if action == Kill {
		if err := f.die(ctx, e, "its time was up"); err != nil {
			f.o.Log.Error("ending a sandbox whose time was up", "sandbox", e.id, "error", err)
		}
		return
	}
	if err := f.pause(ctx, e); err != nil {
		f.note(e.id, slog.LevelError, "could not be paused when its time was up; tried again soon", map[string]string{"error": err.Error()})
		e.mu.Lock()
		if e.timer != nil {
			e.timer.Reset(pauseRetry)
		}
		e.mu.Unlock()
	}
}

// SetTimeout gives a running sandbox d from now, more or less than it had. With none its time is up.
func (f *Fleet) SetTimeout(ctx context.Context, id string, d time.Duration) error {
	if d != 0 {
		var err error
		if d, err = f.timeout(d); err != nil {
			return err
		}
	}
	return f.giveTime(ctx, id, d, false)
}

// Refresh gives a running sandbox at least d from now; zero is the default.
func (f *Fleet) Refresh(ctx context.Context, id string, d time.Duration) error {
	d, err := f.timeout(d)
	if err != nil {
		return err
	}
	return f.giveTime(ctx, id, d, true)
}

func (f *Fleet) giveTime(ctx context.Context, id string, d time.Duration, extend bool) error {
	e, err := f.ours(ctx, id)
	if err != nil {
		return err
	}
	defer e.give()
	if e.get().State != Running {
		return paused(id)
	}
	return f.until(ctx, e, time.Now().Add(d).UTC(), extend)
}

// until sets the end of a running sandbox's time. The caller holds the turn.
func (f *Fleet) until(ctx context.Context, e *entry, end time.Time, extend bool) error {
	if extend && !end.After(e.get().End) {
		return nil
	}
	return f.change(ctx, e, func(e *entry) {
		e.info.End = end
		if e.timer != nil {
			e.timer.Reset(time.Until(end))
		}
	})
}

// SetReach says anew what a running sandbox may reach, which its forks may then, too. Errors are of the kinds Invalid, if its network is not one whose traffic
// is filtered, NotFound, Gone, and Conflict, if it is paused.
func (f *Fleet) SetReach(ctx context.Context, id string, r Reach) error {
	e, err := f.ours(ctx, id)
	if err != nil {
		return err
	}
	defer e.give()
	i := e.get()
	if i.State != Running {
		return paused(id)
	}
	policy, err := r.policy(i.Net)
	if err != nil {
		return err
	}
	if err := e.live.SetPolicy(policy); err != nil {
		return err
	}
	f.note(id, slog.LevelInfo, "may reach other destinations", map[string]string{"allowed": fmt.Sprint(policy.Allow), "denied": fmt.Sprint(policy.Deny)})
	return f.change(context.WithoutCancel(ctx), e, func(e *entry) { e.info.Reach = policy })
}
