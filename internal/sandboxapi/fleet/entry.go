package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox"
)

// entry is a sandbox of the fleet.
type entry struct {
	id   string
	turn chan struct{} // holds an element while somebody changes what the sandbox is: pauses, wakes, forks or ends it

	mu       sync.Mutex // guards what follows, which is changed by the holder of the turn only
	info     Info
	own      []uuid.UUID
	pausing  uuid.UUID
	live     *sandbox.Sandbox // nil unless it runs
	template *template        // what live stands on
	timer    *time.Timer      // of the end of its time; nil unless it runs
	last     sample           // the latest measurement
	series   []Metric
}

func newEntry(r record) *entry {
	return &entry{id: r.Info.ID, turn: make(chan struct{}, 1), info: r.Info, own: r.Own, pausing: r.Pausing}
}

// take waits for the turn.
func (e *entry) take(ctx context.Context) error {
	select {
	case e.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case e.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *entry) give() { <-e.turn }

// get returns what is known of the sandbox now.
func (e *entry) get() Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.info
}

// record is what the database is to hold of it.
func (e *entry) record() record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return record{Info: e.info, Own: slices.Clone(e.own), Pausing: e.pausing}
}

// entry finds a sandbox, dead ones too.
func (f *Fleet) entry(id string) (*entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.entries[id]; e != nil {
		return e, nil
	}
	return nil, unknown(id)
}

// living finds a sandbox that is not dead.
func (f *Fleet) living(id string) (*entry, error) {
	e, err := f.entry(id)
	if err == nil && e.get().State == Dead {
		err = gone(e.get())
	}
	return e, err
}

// ours is living for the holder of a turn: it waits for it. The caller gives the turn back.
func (f *Fleet) ours(ctx context.Context, id string) (*entry, error) {
	e, err := f.living(id)
	if err != nil {
		return nil, err
	}
	if err := e.take(ctx); err != nil {
		return nil, err
	}
	if i := e.get(); i.State == Dead { // meanwhile
		e.give()
		return nil, gone(i)
	}
	return e, nil
}

func gone(i Info) error {
	err := &Error{Kind: Gone, Message: "sandbox " + i.ID + " is gone: " + i.Reason, Hint: "make another one"}
	if err.Damaged = i.Damaged; i.Damaged {
		err.Hint = damageHint
	}
	return err
}

// all returns every entry.
func (f *Fleet) all() []*entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*entry, 0, len(f.entries))
	for _, e := range f.entries {
		list = append(list, e)
	}
	return list
}

// change changes what a sandbox is, in the database too, and keeps the counts. The caller holds the turn.
func (f *Fleet) change(ctx context.Context, e *entry, how func(*entry)) error {
	before := e.get()
	e.mu.Lock()
	how(e)
	e.mu.Unlock()
	f.recount(before, e.get())
	return f.save(ctx, e)
}

// recount keeps what owners have when a sandbox has changed.
func (f *Fleet) recount(before, after Info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count(before, -1)
	f.count(after, +1)
}

// save writes a sandbox down. All that is written goes through the scribe, so that what is written later is what counts.
func (f *Fleet) save(ctx context.Context, e *entry) error {
	r, err := e.record(), error(nil)
	written := make(chan struct{})
	if !f.scribe.write(func() { err = f.db.put(context.WithoutCancel(ctx), r); close(written) }) {
		return errClosing()
	}
	<-written
	return err
}

// saveSoon is save for what decides nothing: that a sandbox runs, which after a crash it does not.
func (f *Fleet) saveSoon(ctx context.Context, e *entry) {
	r := e.record()
	f.scribe.write(func() {
		if err := f.db.put(context.WithoutCancel(ctx), r); err != nil {
			f.o.Log.Warn("a sandbox could not be written down", "sandbox", r.Info.ID, "error", err)
		}
	})
}

// count keeps what an owner has. f.mu is held.
func (f *Fleet) count(i Info, by int) {
	u := f.usage[i.Owner]
	if u == nil {
		u = &use{}
		f.usage[i.Owner] = u
	}
	switch i.State {
	case Running:
		u.running += by
	case Paused:
		u.paused += by
	}
}

// Get tells of a sandbox. Errors are of the kinds NotFound and Gone.
func (f *Fleet) Get(_ context.Context, id string) (Info, error) {
	e, err := f.living(id)
	if err != nil {
		return Info{}, err
	}
	return e.get(), nil
}

// VMM is the process id of a running sandbox's monitor, for measurements. The error is of the kind Conflict if it sleeps.
func (f *Fleet) VMM(id string) (int, error) {
	e, err := f.living(id)
	if err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live == nil {
		return 0, paused(id)
	}
	return e.live.VMM(), nil
}

// is reports whether err, or an error in it, is a T.
func is[T error](err error) bool {
	var t T
	return errors.As(err, &t)
}
