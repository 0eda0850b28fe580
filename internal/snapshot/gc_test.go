package snapshot_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

func collect(t testing.TB, w world, grace time.Duration, remove bool) []uuid.UUID {
	t.Helper()
	garbage, _, err := w.repo.GC(t.Context(), grace, remove)
	if err != nil {
		t.Fatal(err)
	}
	var out []uuid.UUID
	for _, g := range garbage {
		if g.Err != nil || remove != g.Removed {
			t.Errorf("%s: removed %t, %v", g.ID, g.Removed, g.Err)
		}
		out = append(out, g.ID)
	}
	return out
}

func TestGC(t *testing.T) {
	w := newWorld(t)
	all := family(t, w)
	alone := w.add(t, uuid.New(), nil, simple(4))
	for _, s := range append(all, alone) {
		s.Close()
	}
	for _, s := range append(all, alone) {
		old := time.Now().Add(-3 * time.Hour)
		if err := os.Chtimes(w.file(s.ID(), snapshot.MetadataFile), old, old); err != nil {
			t.Fatal(err)
		}
	}
	first, second, third := all[0].ID(), all[1].ID(), all[2].ID()
	if err := w.repo.Tag(t.Context(), "kept", second); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, w, 24*time.Hour, true); len(got) != 0 {
		t.Errorf("within the grace period: %v", got)
	}
	want := []uuid.UUID{third, alone.ID()}
	for range 2 { // a dry run removes nothing
		if got := collect(t, w, time.Hour, false); !slices.Equal(got, want) {
			t.Errorf("dry run: %v, want %v", got, want)
		}
	}
	pin, err := w.store.Pin(t.Context(), third)
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(t, w, time.Hour, true); !slices.Equal(got, want[1:]) {
		t.Errorf("while one is in use: %v, want %v", got, want[1:])
	}
	pin.Close()
	if got := collect(t, w, time.Hour, true); !slices.Equal(got, want[:1]) {
		t.Errorf("removed %v, want %v", got, want[:1])
	}
	if err := w.repo.Untag(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, w, time.Hour, true); !slices.Equal(got, []uuid.UUID{second, first}) {
		t.Errorf("a chain goes youngest first: %v", got)
	}
	if left := below(t, w.root); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// nosy is a store that calls back while a snapshot is about to be removed.
type nosy struct {
	store.Store
	before func(id uuid.UUID)
}

func (n nosy) Remove(ctx context.Context, id uuid.UUID, unless func(context.Context) error) error {
	n.before(id)
	return n.Store.Remove(ctx, id, unless)
}

// TestGCLooksAgain names one snapshot and builds upon another after they were
// found to be garbage.
func TestGCLooksAgain(t *testing.T) {
	w := newWorld(t)
	named, parent := w.add(t, uuid.New(), nil, simple(1)), w.add(t, uuid.New(), nil, simple(2))
	named.Close()
	child := uuid.New()
	var once sync.Once
	repo, err := snapshot.Open(nosy{w.store, func(uuid.UUID) {
		once.Do(func() {
			if err := w.repo.Tag(t.Context(), "name", named.ID()); err != nil {
				t.Error(err)
			}
			s, err := w.make(t.Context(), child, parent, change{disk: map[int64][]byte{page: pages(7, 3)}}, machine())
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
			parent.Close()
		})
	}}, w.cache)
	if err != nil {
		t.Fatal(err)
	}
	parent.Close()
	parent, err = w.repo.OpenID(t.Context(), parent.ID())
	if err != nil {
		t.Fatal(err)
	}
	parent.Close() // not in use when they are found; the draft pins it itself
	garbage, _, err := repo.GC(t.Context(), 0, true)
	if err != nil || len(garbage) != 2 {
		t.Fatalf("%v, %v", garbage, err)
	}
	for _, g := range garbage {
		if g.Removed || g.Err != nil {
			t.Errorf("%s: removed %t, %v", g.ID, g.Removed, g.Err)
		}
	}
	s, err := w.repo.OpenID(t.Context(), child)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := w.repo.Verify(t.Context(), s, nil); err != nil {
		t.Error(err)
	}
}

// TestGCBesideWriters builds chains while the garbage is collected all the time:
// every snapshot that a writer holds or has named stays whole.
func TestGCBesideWriters(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := w.repo.GC(ctx, 0, true); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	var writers sync.WaitGroup
	for i := range 3 {
		writers.Go(func() {
			var parent *snapshot.Snapshot
			for n := 0; n < 8 || parent == nil && n < 1000; n++ { // with one to name in the end, however often the moment is bad
				c := change{disk: map[int64][]byte{int64(n) * page: pages(i*100+n, 1)}}
				s, err := w.make(ctx, uuid.New(), parent, c, machine())
				var gone *snapshot.NotFoundError
				if errors.Is(err, store.ErrNoSnapshot) || errors.As(err, &gone) {
					continue // collected in the moment between commit and pin
				} else if err != nil {
					t.Error(err)
					return
				}
				if parent != nil {
					parent.Close()
				}
				parent = s
				if err := w.repo.Verify(ctx, s, nil); err != nil {
					t.Errorf("while it is held: %v", err)
				}
			}
			if parent != nil {
				if err := w.repo.Tag(ctx, "writer/"+string(rune('a'+i)), parent.ID()); err != nil {
					t.Error(err)
				}
				parent.Close()
			}
		})
	}
	writers.Wait()
	cancel()
	collecting.Wait()
	names, err := w.repo.Names(t.Context())
	if err != nil || len(names) != 3 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, id := range names {
		s, err := w.repo.OpenID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.repo.Verify(t.Context(), s, nil); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}
