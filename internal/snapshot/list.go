package snapshot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// listReaders is how many metadata.json are read at once. Local ones are in the
// page cache, remote ones wait for the network.
const listReaders = 8

// Info is what a list says of a snapshot.
type Info struct {
	ID       uuid.UUID
	Names    []string // that point to it, ascending
	Digest   block.Digest
	Metadata *Metadata
}

// List returns all snapshots, oldest first, for one read each. A snapshot whose
// metadata can't be read is left out and given to broken, which may be nil; calls
// of it do not overlap.
func (r *Repo) List(ctx context.Context, broken func(id uuid.UUID, err error)) ([]Info, error) {
	ids, err := r.store.List(ctx)
	if err != nil {
		return nil, err
	}
	names, err := r.store.Names(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	infos := make([]Info, 0, len(ids))
	var g errgroup.Group
	g.SetLimit(listReaders)
	for _, id := range ids {
		g.Go(func() error {
			m, digest, err := readMetadata(ctx, r.store, id)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				infos = append(infos, Info{ID: id, Digest: digest, Metadata: m})
			case ctx.Err() != nil:
				return err
			case errors.Is(err, store.ErrNoSnapshot): // removed since List
			case broken != nil:
				broken(id, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	byID := make(map[uuid.UUID][]string, len(names))
	for name, id := range names {
		byID[id] = append(byID[id], name)
	}
	for i := range infos {
		infos[i].Names = byID[infos[i].ID]
		slices.Sort(infos[i].Names)
	}
	slices.SortFunc(infos, func(a, b Info) int {
		if c := a.Metadata.Created.Compare(b.Metadata.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return infos, nil
}

// dependents returns the snapshots that hold data of id. A child that overwrote
// everything is none, nor is one whose metadata is damaged, since it can't be woken.
// One that can't be read just now, or is of a newer version, is an error: nobody
// knows what it needs.
func (r *Repo) dependents(ctx context.Context, id uuid.UUID) ([]Info, error) {
	var unknown []error
	all, err := r.List(ctx, func(_ uuid.UUID, err error) {
		if errors.Is(err, errNewer) || !is[*CorruptError](err) {
			unknown = append(unknown, err)
		}
	})
	if err == nil && len(unknown) > 0 {
		err = unreadable(errors.Join(unknown...))
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(i Info) bool { return !contains(i.Metadata.Layers, id) }), nil
}
