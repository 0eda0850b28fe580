package bucket

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/google/uuid"
	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/store"
)

// nameReaders is how many names are read at once.
const nameReaders = 8

const namesPrefix = ".names/"

func nameKey(name string) string { return namesPrefix + strings.ReplaceAll(name, "/", "+") }

// SetName implements store.Store.
func (b *Bucket) SetName(ctx context.Context, name string, id uuid.UUID) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	pin, err := b.Pin(ctx, id)
	if err != nil {
		return fmt.Errorf("naming %q: %w", name, err)
	}
	defer pin.Close()
	if err := b.put(ctx, nameKey(name), []byte(id.String()+"\n"), nil); err != nil {
		return fmt.Errorf("naming %q: %w", name, err)
	}
	return nil
}

// Names implements store.Store.
func (b *Bucket) Names(ctx context.Context) (map[string]uuid.UUID, error) {
	names, err := b.readNames(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the names: %w", err)
	}
	if len(names) == 0 {
		return names, nil
	}
	ids, err := b.List(ctx)
	if err != nil {
		return nil, err
	}
	published := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		published[id] = true
	}
	for name, id := range names {
		if !published[id] {
			delete(names, name)
		}
	}
	return names, nil
}

// readNames also returns the names of removed snapshots.
func (b *Bucket) readNames(ctx context.Context) (map[string]uuid.UUID, error) {
	names := map[string]uuid.UUID{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(nameReaders)
	err := b.each(ctx, namesPrefix, func(o *blob.ListObject) error {
		name := strings.ReplaceAll(strings.TrimPrefix(o.Key, namesPrefix), "+", "/")
		if store.CheckName(name) != nil {
			return nil
		}
		g.Go(func() error {
			data, err := b.readSmall(ctx, o.Key, 64)
			if err != nil {
				return err
			}
			text, whole := strings.CutSuffix(string(data), "\n")
			id, err := uuid.Parse(text)
			if !whole || err != nil || id.String() != text {
				return nil // damaged, or gone meanwhile: no name
			}
			mu.Lock()
			defer mu.Unlock()
			names[name] = id
			return nil
		})
		return nil
	})
	if failed := g.Wait(); err == nil {
		err = failed
	}
	return names, err
}

// RemoveName implements store.Store.
func (b *Bucket) RemoveName(ctx context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	attrs, err := b.attributes(ctx, nameKey(name))
	if err == nil && attrs == nil {
		err = store.ErrNoName
	}
	if err == nil {
		err = b.remove(ctx, nameKey(name))
	}
	if err != nil {
		return fmt.Errorf("forgetting %q: %w", name, err)
	}
	return nil
}
