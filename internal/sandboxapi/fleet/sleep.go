package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/store"
)

// Purposes of snapshots that the fleet makes.
const (
	purposePause    = "pause"
	purposeFork     = "fork"
	purposeSnapshot = "snapshot"
)

// Pause lets a sandbox sleep: it is a snapshot until it is woken. The error is of the kind Conflict if it sleeps already.
func (f *Fleet) Pause(ctx context.Context, id string) (Info, error) {
	e, err := f.ours(ctx, id)
	if err != nil {
		return Info{}, err
	}
	defer e.give()
	if e.get().State == Paused {
		return Info{}, &Error{Kind: Conflict, Message: fmt.Sprintf("sandbox %s is paused already", id)}
	}
	if err := f.admitPause(e.get().Owner); err != nil {
		return Info{}, err
	}
	if err := f.pause(ctx, e); err != nil {
		return Info{}, err
	}
	return e.get(), nil
}

// pause is Pause for the holder of the turn. After an error the sandbox goes on.
func (f *Fleet) pause(ctx context.Context, e *entry) (err error) {
	ctx, span := f.o.Tracer.Start(ctx, "pause sandbox")
	defer func() { endSpan(span, err) }()
	// Written down first: should the daemon die in between, whether this snapshot is there tells whether the sandbox sleeps.
	child := uuid.New()
	if err := f.change(ctx, e, func(e *entry) { e.pausing = child }); err != nil {
		return err
	}
	snap, report, err := e.live.Pause(ctx, sandbox.PauseSpec{ID: child, Names: []string{sleepName(e.id)}, Labels: labels(e.id, purposePause)}, sandbox.NoProgress{})
	if err != nil {
		return errors.Join(err, f.change(context.WithoutCancel(ctx), e, func(e *entry) { e.pausing = uuid.Nil }))
	}
	live, t := f.takeDown(e)
	err = f.change(context.WithoutCancel(ctx), e, func(e *entry) {
		e.info.State, e.info.Snapshot, e.pausing = Paused, child, uuid.Nil
		e.own = append(e.own, child)
	})
	err = errors.Join(err, snap.Close(), live.Close())
	f.letGoAll(ctx, t)
	f.metrics.paused(report.Stopped)
	f.note(e.id, slog.LevelInfo, "paused", map[string]string{"snapshot": child.String(), "took": report.Total.Round(time.Microsecond).String()})
	f.trim(ctx, e.id)
	return err
}

func labels(id, purpose string) map[string]string {
	return map[string]string{labelSandbox: id, labelPurpose: purpose}
}

// Connect returns a running sandbox: one that sleeps is woken. It gets timeout from now, of which a running one only gains. When several connect to one that
// sleeps, one of them wakes it, and all get the same.
func (f *Fleet) Connect(ctx context.Context, id string, timeout time.Duration) (info Info, resumed bool, err error) {
	timeout, err = f.timeout(timeout)
	if err != nil {
		return Info{}, false, err
	}
	e, err := f.ours(ctx, id)
	if err != nil {
		return Info{}, false, err
	}
	defer e.give()
	end := time.Now().Add(timeout).UTC()
	if e.get().State == Running {
		err := f.until(ctx, e, end, true)
		return e.get(), false, err
	}
	if err := f.wake(ctx, e, end); err != nil {
		return Info{}, false, err
	}
	return e.get(), true, nil
}

// wake wakes a sandbox that sleeps. The caller holds the turn.
func (f *Fleet) wake(ctx context.Context, e *entry, end time.Time) (err error) {
	begin := time.Now()
	ctx, span := f.o.Tracer.Start(ctx, "wake sandbox")
	defer func() { endSpan(span, err) }()
	i := e.get()
	seat, err := f.admit(i.Owner)
	if err != nil {
		return err
	}
	defer seat.give()
	t, err := f.acquire(ctx, i.Snapshot)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(e.id)
	if err != nil {
		return errors.Join(err, f.letGo(t))
	}
	live, err := f.resume(ctx, t, sandbox.ResumeOptions{ID: id, Policy: i.Reach})
	if err != nil {
		return errors.Join(f.startError(ctx, err), f.letGo(t))
	}
	e.mu.Lock()
	e.info.End = end
	e.mu.Unlock()
	f.runs(e, seat, live, t, false, begin)
	// Written down before anybody uses it: after a crash it is dead, and not what it once slept as.
	if err := f.save(ctx, e); err != nil {
		f.takeDown(e)
		before := e.get()
		e.mu.Lock()
		e.info.State = Paused
		e.mu.Unlock()
		f.recount(before, e.get())
		return errors.Join(err, live.Close(), f.letGo(t))
	}
	f.phases(ctx, live, begin, false)
	f.note(e.id, slog.LevelInfo, "woken", map[string]string{"snapshot": t.id.String(), "took": time.Since(begin).Round(time.Microsecond).String()})
	return nil
}

// capture freezes a running sandbox and lets it go on, or says as what it sleeps. The caller holds the turn.
func (f *Fleet) capture(ctx context.Context, e *entry, names []string, purpose string) (uuid.UUID, time.Duration, error) {
	if i := e.get(); i.State == Paused {
		return i.Snapshot, 0, nil
	}
	child := uuid.New()
	snap, report, err := e.live.Pause(ctx, sandbox.PauseSpec{ID: child, Names: names, Labels: labels(e.id, purpose), KeepRunning: true}, sandbox.NoProgress{})
	if err != nil {
		return uuid.Nil, 0, err
	}
	f.metrics.paused(report.Stopped)
	err = f.change(context.WithoutCancel(ctx), e, func(e *entry) {
		e.info.Snapshot = child
		if purpose != purposeSnapshot { // that one was asked for, and outlives it
			e.own = append(e.own, child)
		}
	})
	return child, report.Stopped, errors.Join(err, snap.Close())
}

// Snapshot freezes a sandbox as a template of its own, under a name if one is given, and lets it go on.
func (f *Fleet) Snapshot(ctx context.Context, id, name string) (uuid.UUID, []string, error) {
	names := []string{}
	if name != "" {
		name = trimmed(name)
		if err := store.CheckName(name); err != nil {
			return uuid.Nil, nil, &Error{Kind: Invalid, Message: err.Error()}
		}
		names = append(names, name)
	}
	e, err := f.ours(ctx, id)
	if err != nil {
		return uuid.Nil, nil, err
	}
	defer e.give()
	if e.get().State == Paused {
		return uuid.Nil, nil, paused(id)
	}
	// A snapshot without a name would be collected as garbage.
	keep := names
	if len(keep) == 0 {
		keep = []string{"snapshot/" + uuid.NewString()}
	}
	child, stopped, err := f.capture(ctx, e, keep, purposeSnapshot)
	if err != nil {
		return uuid.Nil, nil, err
	}
	f.note(id, slog.LevelInfo, "captured", map[string]string{"snapshot": child.String(), "stopped": stopped.Round(time.Microsecond).String()})
	return child, names, nil
}

// Snapshots lists the templates that were made from sandboxes, youngest first. An empty sandbox means any.
func (f *Fleet) Snapshots(ctx context.Context, sandbox string) ([]Template, error) {
	infos, err := f.host.Snapshots.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	list := []Template{}
	for i := len(infos) - 1; i >= 0; i-- {
		m := infos[i].Metadata
		if m.Labels[labelPurpose] == purposeSnapshot && (sandbox == "" || m.Labels[labelSandbox] == sandbox) {
			list = append(list, f.describe(m, infos[i].Names, spawnCount{}))
		}
	}
	return list, nil
}
