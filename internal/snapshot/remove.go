package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

// removeRounds bounds how often Remove starts again because others were adding
// children.
const removeRounds = 16

// Remove removes a snapshot, its names and its cached memory. When others need its
// data it is refused with a *DependentsError or, with force, they are removed
// too, they first. One that is in use by a machine or a draft is always refused
// (store.ErrInUse). It returns what was removed, also when it fails half way; each
// snapshot goes in one step.
func (r *Repo) Remove(ctx context.Context, id uuid.UUID, force bool) ([]uuid.UUID, error) {
	var removed []uuid.UUID
	for range removeRounds {
		err := r.removeOne(ctx, id)
		var needed *DependentsError
		switch {
		case err == nil:
			return append(removed, id), nil
		case !errors.As(err, &needed) || !force:
			return removed, err
		}
		for _, dependent := range needed.Dependents {
			also, err := r.Remove(ctx, dependent, true)
			removed = append(removed, also...)
			var gone *NotFoundError
			if err != nil && !errors.As(err, &gone) { // gone with another dependent
				return removed, err
			}
		}
	}
	return removed, fmt.Errorf("removing snapshot %s: others keep making children of it", id)
}

func (r *Repo) removeOne(ctx context.Context, id uuid.UUID) error {
	// Broken metadata is no reason to keep a snapshot, it only hides its cache.
	m, _, unreadable := readMetadata(ctx, r.store, id)
	err := r.store.Remove(ctx, id, func(ctx context.Context) error {
		dependents, err := r.dependents(ctx, id)
		if err != nil {
			return err
		}
		if len(dependents) == 0 {
			return nil
		}
		// Youngest first, the order in which they can go.
		slices.SortStableFunc(dependents, func(a, b Info) int {
			return cmp.Compare(b.Metadata.Generation, a.Metadata.Generation)
		})
		needed := &DependentsError{ID: id}
		for _, d := range dependents {
			needed.Dependents = append(needed.Dependents, d.ID)
		}
		return needed
	})
	if errors.Is(err, store.ErrNoSnapshot) {
		return r.notFound(ctx, id.String(), err)
	}
	if err == nil && unreadable == nil && m.HasMemory() {
		err = r.cache.drop(cacheKey(m))
	}
	return err
}
