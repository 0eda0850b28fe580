package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

// DefaultGrace is how long GC leaves alone what nobody has named yet.
const DefaultGrace = 24 * time.Hour

// Garbage is a snapshot that nothing leads to.
type Garbage struct {
	Info
	Removed bool
	Err     error // why it was not removed, though it should have been
}

// GC finds the snapshots that nothing leads to, youngest first, and removes them
// if remove is set. What leads to a snapshot is a name, a pin (of a machine, or of
// a draft that builds upon it), that it was published within the grace period, and that
// a snapshot to which something leads needs its data.
//
// While a snapshot can't be read nobody knows what it needs, and GC is an error
// with or without remove.
//
// It is safe beside writers: each removal looks again, while nobody can pin the
// snapshot, at what was published and named since.
//
// With remove, the store is also swept of what writers who died left before the
// grace period, as far as it keeps that; swept is how many bytes that were.
func (r *Repo) GC(ctx context.Context, grace time.Duration, remove bool) (garbage []Garbage, swept int64, err error) {
	var unknown []error
	infos, err := r.List(ctx, func(_ uuid.UUID, err error) { unknown = append(unknown, err) })
	if err == nil && len(unknown) > 0 {
		err = unreadable(errors.Join(unknown...))
	}
	if err != nil {
		return nil, 0, fmt.Errorf("collecting garbage: %w", err)
	}
	since := time.Now().Add(-grace)
	g := &collector{repo: r, known: make(map[uuid.UUID]*Metadata, len(infos))}
	for _, i := range infos {
		g.known[i.ID] = i.Metadata
	}
	garbage, err = g.find(ctx, infos, since)
	if err != nil || !remove {
		return garbage, 0, err
	}
	for i := range garbage {
		if err := ctx.Err(); err != nil {
			return garbage, 0, err
		}
		garbage[i].Removed, garbage[i].Err = g.remove(ctx, garbage[i].Info)
	}
	if s, ok := r.store.(sweeper); ok {
		swept, err = s.Sweep(ctx, since)
	}
	return garbage, swept, err
}

// sweeper is a store that keeps what dead writers left: somebody may go on with it,
// or it can't tell that they are dead.
type sweeper interface {
	Sweep(ctx context.Context, before time.Time) (freed int64, err error)
}

// collector is one collection under way.
type collector struct {
	repo  *Repo
	known map[uuid.UUID]*Metadata // all that are published, as far as was seen
}

// find returns what nothing leads to, in an order in which it can be removed.
func (g *collector) find(ctx context.Context, infos []Info, since time.Time) ([]Garbage, error) {
	reached := map[uuid.UUID]bool{}
	for _, i := range infos {
		root, err := len(i.Names) > 0, error(nil)
		if !root {
			root, err = g.held(ctx, i.ID, since)
		}
		if errors.Is(err, store.ErrNoSnapshot) {
			continue // removed since
		} else if err != nil {
			return nil, fmt.Errorf("collecting garbage: %w", err)
		}
		if root {
			g.reach(i.ID, reached)
		}
	}
	garbage := []Garbage{}
	for _, i := range infos {
		if !reached[i.ID] {
			garbage = append(garbage, Garbage{Info: i})
		}
	}
	slices.SortStableFunc(garbage, func(a, b Garbage) int {
		return cmp.Compare(b.Metadata.Generation, a.Metadata.Generation)
	})
	return garbage, nil
}

// held tells whether a snapshot is young or in use.
func (g *collector) held(ctx context.Context, id uuid.UUID, since time.Time) (bool, error) {
	published, err := g.repo.store.Published(ctx, id)
	if err != nil || published.After(since) {
		return true, err
	}
	return g.repo.store.InUse(ctx, id)
}

// reach marks a snapshot and those whose data it needs, which its metadata lists
// down to the last.
func (g *collector) reach(id uuid.UUID, reached map[uuid.UUID]bool) {
	reached[id] = true
	if m := g.known[id]; m != nil {
		for _, layer := range m.Layers {
			reached[layer] = true
		}
	}
}

var errReached = errors.New("something leads to it now")

// remove removes one snapshot unless something leads to it meanwhile.
func (g *collector) remove(ctx context.Context, i Info) (bool, error) {
	err := g.repo.store.Remove(ctx, i.ID, func(ctx context.Context) error {
		names, err := g.repo.store.Names(ctx)
		if err != nil {
			return err
		}
		for _, id := range names {
			if id == i.ID {
				return errReached
			}
		}
		if err := g.refresh(ctx); err != nil {
			return err
		}
		for _, m := range g.known {
			if contains(m.Layers, i.ID) {
				return errReached
			}
		}
		return nil
	})
	switch {
	case err == nil:
		delete(g.known, i.ID)
		if i.Metadata.HasMemory() {
			err = g.repo.cache.drop(cacheKey(i.Metadata))
		}
		return true, err
	case errors.Is(err, errReached), errors.Is(err, store.ErrInUse), errors.Is(err, store.ErrNoSnapshot):
		return false, nil
	}
	return false, err
}

func unreadable(err error) error {
	return fmt.Errorf("nothing can be removed while a snapshot can't be read: %w", err)
}

// refresh reads the metadata of what was published since, and forgets what is gone.
// A snapshot that can't be read is an error: nobody knows what it needs.
func (g *collector) refresh(ctx context.Context) error {
	ids, err := g.repo.store.List(ctx)
	if err != nil {
		return err
	}
	now := make(map[uuid.UUID]*Metadata, len(ids))
	for _, id := range ids {
		if now[id] = g.known[id]; now[id] != nil {
			continue
		}
		m, _, err := readMetadata(ctx, g.repo.store, id)
		if errors.Is(err, store.ErrNoSnapshot) {
			delete(now, id)
			continue
		} else if err != nil {
			return unreadable(err)
		}
		now[id] = m
	}
	g.known = now
	return nil
}
