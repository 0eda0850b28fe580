// Package snapshot sees a snapshot as one thing: it opens and checks it, makes
// new ones, finds them by name, and keeps the flat memory files that machines
// map.
//
// Trust starts at metadata.json, which carries its own digest and holds those of
// the headers and of the device state; the headers hold those of all frames. So
// nothing that a Snapshot returns is unchecked, and what fails a check is an
// error that names snapshot and artifact: a *CorruptError, or a
// *block.CorruptError for a frame.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// Repo is the snapshots of a store, and their cache on this host. It serves many
// goroutines, and many processes may have one store and one cache.
type Repo struct {
	store store.Store
	cache flatCache
	far   block.FrameCache                   // of a store that is far away; nil: it is near
	trust func(*Snapshot, []Signature) error // nil: whatever is whole
}

// Option changes how a Repo works.
type Option func(*Repo)

// Far says that the store is far away: frames are kept in a cache on this host, and
// fetched many at a time.
func Far(frames block.FrameCache) Option { return func(r *Repo) { r.far = frames } }

// cacheLimit is the disk space, in bytes, that flat memory files which no machine
// uses may take up.
const cacheLimit = 32 << 30

// Open returns the snapshots in st. cacheDir, which need not exist, is a directory
// of this host for what can be made again; what interrupted runs left in it is
// removed.
func Open(st store.Store, cacheDir string, options ...Option) (*Repo, error) {
	if cacheDir == "" {
		return nil, errors.New("opening the cache: no directory is given")
	}
	dir, err := filepath.Abs(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("opening the cache %s: %w", cacheDir, err)
	}
	r := &Repo{store: st, cache: flatCache{dir: filepath.Join(dir, "memory"), limit: cacheLimit, at: func(string) {}}}
	for _, o := range options {
		o(r)
	}
	if err := r.cache.sweep(); err != nil {
		return nil, fmt.Errorf("opening the cache %s: %w", cacheDir, err)
	}
	return r, nil
}

// minPrefix is the fewest hexadecimal digits of an id that stand for it.
const minPrefix = 4

// Resolve returns the id that ref means: a name, an id, or the first four or more
// digits of one id alone. Errors are of type *NotFoundError or *AmbiguousError,
// or the store's.
func (r *Repo) Resolve(ctx context.Context, ref string) (uuid.UUID, error) {
	if id, err := uuid.Parse(ref); err == nil {
		pin, err := r.store.Pin(ctx, id)
		if err != nil {
			return uuid.Nil, r.notFound(ctx, ref, err)
		}
		return id, pin.Close()
	}
	if store.CheckName(ref) == nil {
		if id, err := r.Name(ctx, ref); !errors.Is(err, store.ErrNoName) {
			return id, err
		}
	}
	ids, err := r.matching(ctx, ref)
	switch {
	case err != nil:
		return uuid.Nil, err
	case len(ids) == 0:
		return uuid.Nil, r.notFound(ctx, ref, store.ErrNoSnapshot)
	case len(ids) > 1:
		return uuid.Nil, &AmbiguousError{Ref: ref, Candidates: ids}
	}
	return ids[0], nil
}

// matching returns the ids that begin with ref, dashes and case aside.
func (r *Repo) matching(ctx context.Context, ref string) ([]uuid.UUID, error) {
	prefix := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, nil
	}
	ids, err := r.store.List(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ids, func(id uuid.UUID) bool {
		return !strings.HasPrefix(strings.ReplaceAll(id.String(), "-", ""), prefix)
	}), nil
}

// notFound turns the store's "no such snapshot" into one with hints.
func (r *Repo) notFound(ctx context.Context, ref string, err error) error {
	if !errors.Is(err, store.ErrNoSnapshot) {
		return err
	}
	names, err := r.store.Names(ctx)
	if err != nil {
		names = nil // a hint is no reason to fail otherwise
	}
	return &NotFoundError{Ref: ref, Near: near(ref, names)}
}

// Open opens the snapshot that ref means; see Resolve.
func (r *Repo) Open(ctx context.Context, ref string) (*Snapshot, error) {
	id, err := r.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return r.OpenID(ctx, id)
}

// Tag points name to a snapshot, whatever it pointed to before.
func (r *Repo) Tag(ctx context.Context, name string, id uuid.UUID) error {
	err := r.store.SetName(ctx, name, id)
	if errors.Is(err, store.ErrNoSnapshot) {
		return r.notFound(ctx, id.String(), err)
	}
	return err
}

// Untag forgets a name; the snapshot stays.
func (r *Repo) Untag(ctx context.Context, name string) error {
	return r.store.RemoveName(ctx, name)
}

// Name returns what a name points to. The error wraps store.ErrNoName where it is none.
func (r *Repo) Name(ctx context.Context, name string) (uuid.UUID, error) {
	return r.store.Name(ctx, name)
}

// Names returns all names.
func (r *Repo) Names(ctx context.Context) (map[string]uuid.UUID, error) {
	return r.store.Names(ctx)
}
