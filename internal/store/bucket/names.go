package bucket

import (
	"context"
	"errors"
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

// Name implements store.Store.
func (b *Bucket) Name(ctx context.Context, name string) (uuid.UUID, error) {
	if err := store.CheckName(name); err != nil {
		return uuid.Nil, err
	}
	id, err := b.readName(ctx, nameKey(name))
	if err == nil {
		_, err = b.Published(ctx, id)
	}
	if errors.Is(err, store.ErrNoSnapshot) || errors.Is(err, store.ErrBadName) {
		err = store.ErrNoName
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("reading the name %q: %w", name, err)
	}
	return id, nil
}

// readName reads the id in a name's object. The error wraps store.ErrBadName for one that is damaged, or gone meanwhile.
func (b *Bucket) readName(ctx context.Context, key string) (uuid.UUID, error) {
	data, err := b.readSmall(ctx, key, 64)
	if err != nil {
		return uuid.Nil, err
	}
	text, whole := strings.CutSuffix(string(data), "\n")
	id, err := uuid.Parse(text)
	if !whole || err != nil || id.String() != text {
		return uuid.Nil, store.ErrBadName
	}
	return id, nil
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
			id, err := b.readName(ctx, o.Key)
			if errors.Is(err, store.ErrBadName) {
				return nil
			} else if err != nil {
				return err
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
