package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
)

var errGone = errors.New("the user has gone")

// TestCancelCreate gives a creation up when each phase begins and a while later.
func TestCancelCreate(t *testing.T) {
	b := fresh(t, nil)
	type moment struct {
		phase string
		later time.Duration
	}
	for _, m := range []moment{
		{"pull", 0}, {"import", 0}, {"import", 5 * time.Millisecond}, {"boot", 0}, {"boot", 30 * time.Millisecond}, {"boot", 700 * time.Millisecond},
		{"step 1/1", 0}, {"start", 50 * time.Millisecond}, {"pause", 100 * time.Millisecond}, {"publish", 0},
	} {
		spec := small()
		spec.StartCommand, spec.ReadyCommand, spec.Names = "sleep 1000", "true", []string{"cancelled"}
		if m.phase == "step 1/1" {
			spec.Steps = []Step{{StepRun, []string{"echo step > /step"}}}
		}
		b.leavesNothing(t, func() {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			snap, err := b.Create(ctx, spec, at{m.phase, func() { time.AfterFunc(m.later, func() { cancel(errGone) }) }})
			if err == nil {
				snap.Close() // it was too late
				t.Logf("cancelled %v after %q: it has succeeded", m.later, m.phase)
				if _, err := b.Snapshots.Remove(t.Context(), snap.ID(), false); err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, errGone) && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled %v after %q: %v", m.later, m.phase, err)
			}
		})
		b.hasOnlyDisks(t)
		if names, err := b.Snapshots.Names(t.Context()); err != nil || len(names) > 0 {
			t.Errorf("cancelled %v after %q: names %v, %v", m.later, m.phase, names, err)
		}
	}
}

// TestCancelPause gives pauses up at random moments. Either all of it has happened or nothing: then the machine goes on.
func TestCancelPause(t *testing.T) {
	b := shared(t, nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := b.resume(t, lab.template)
	n := counts(t, s, 0)
	begin := time.Now()
	id := pause(t, s, PauseSpec{KeepRunning: true})
	usual := time.Since(begin)
	gaveUp, done := 0, 0
	for i := range 24 {
		keep := i%2 == 0
		output(t, s, fmt.Sprintf("echo %d > /last; echo %d > /run/last", i, i))
		before := fmt.Sprint(b.ids(t))
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(random.Float64()*1.3*float64(usual)), errGone)
		snap, _, err := s.Pause(ctx, PauseSpec{KeepRunning: keep, Names: []string{"sometimes"}}, NoProgress{})
		cancel()
		if err != nil {
			gaveUp++
			if !errors.Is(err, errGone) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a pause that is given up: %v", err)
			}
			if after := fmt.Sprint(b.ids(t)); after != before {
				t.Errorf("a pause that is given up leaves the store with %s, it had %s", after, before)
			}
			if names, err := b.Snapshots.Names(t.Context()); err != nil || names["sometimes"] != uuid.Nil && names["sometimes"] != id {
				t.Errorf("a pause that is given up leaves the names %v, %v", names, err)
			}
			n = counts(t, s, n)
			continue
		}
		done++
		id = snap.ID()
		if !keep {
			s.Close()
			s = b.resume(t, id)
		}
		snap.Close()
	}
	t.Logf("a pause takes %v; %d were given up, %d were done", usual, gaveUp, done)
	id = pause(t, s, PauseSpec{})
	s.Close()
	w := b.resume(t, id)
	counts(t, w, n)
	if got := output(t, w, "cat /last /run/last"); got != "23\n23" {
		t.Errorf("the last machine has %q", got)
	}
	w.Close()
	b.verify(t, id)
	if err := b.Snapshots.Untag(t.Context(), "sometimes"); err != nil && done > 0 {
		t.Error(err)
	}
}

// TestCancelResume gives wakes up at random moments.
func TestCancelResume(t *testing.T) {
	b := shared(t, nil)
	snap := b.open(t, lab.template)
	begin := time.Now()
	first, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	usual := time.Since(begin)
	output(t, first, "true") // by now snap has its files open
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	b.leavesNothing(t, func() {
		for i := range 16 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), usual*time.Duration(i)/14, errGone)
			s, err := b.Resume(ctx, snap, ResumeOptions{}, NoProgress{})
			cancel()
			if err == nil {
				output(t, s, "true") // it outlives the call's context
				err = s.Close()
			} else if errors.Is(err, errGone) || errors.Is(err, context.DeadlineExceeded) {
				err = nil
			}
			if err != nil {
				t.Errorf("wake %d: %v", i, err)
			}
		}
	})
}
