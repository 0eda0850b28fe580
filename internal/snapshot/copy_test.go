package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// family is a grandparent, a parent and a child that needs both.
func family(t testing.TB, w world) []*snapshot.Snapshot {
	t.Helper()
	first := w.add(t, uuid.New(), nil, simple(1))
	second := w.add(t, uuid.New(), first, change{disk: map[int64][]byte{0: pages(9, 2)}, memory: map[int64][]byte{5 * page: pages(8, 1)}, state: "second"})
	third := w.add(t, uuid.New(), second, change{disk: map[int64][]byte{page: pages(7, 3)}, memory: map[int64][]byte{0: pages(6, 2)}, state: "third"})
	return []*snapshot.Snapshot{first, second, third}
}

// sameBytes wants all that a snapshot holds to be in the other world to the byte.
func sameBytes(t testing.TB, from, to world, id uuid.UUID) {
	t.Helper()
	for _, name := range below(t, filepath.Join(from.root, id.String())) {
		want, err := os.ReadFile(from.file(id, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(to.file(id, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s of %s differs: %v", name, id, err)
		}
	}
}

func TestCopy(t *testing.T) {
	from, to := newWorld(t), newWorld(t)
	all := family(t, from)
	last := all[2]
	var done, total int64
	report, err := to.repo.CopyFrom(t.Context(), from.repo, last.ID(), func(d, n int64) {
		if d < done {
			t.Errorf("progress went from %d to %d", done, d)
		}
		done, total = d, n
	})
	if err != nil {
		t.Fatal(err)
	}
	if done != total || report.Bytes != total {
		t.Errorf("%d of %d bytes, %d reported", done, total, report.Bytes)
	}
	if want := []uuid.UUID{all[0].ID(), all[1].ID(), last.ID()}; !slices.Equal(report.Copied, want) || len(report.Present) > 0 {
		t.Errorf("copied %v, want %v; present %v", report.Copied, want, report.Present)
	}
	for _, s := range all {
		sameBytes(t, from, to, s.ID())
	}
	got, err := to.repo.OpenID(t.Context(), last.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if err := to.repo.Verify(t.Context(), got, nil); err != nil {
		t.Error(err)
	}
	if got.Digest() != last.Digest() || !bytes.Equal(content(t, got.Memory()), content(t, last.Memory())) {
		t.Error("the copy is another snapshot")
	}
	report, err = to.repo.CopyFrom(t.Context(), from.repo, last.ID(), nil)
	if err != nil || len(report.Copied) != 0 || report.Bytes != 0 || !slices.Equal(report.Present, []uuid.UUID{last.ID()}) {
		t.Errorf("again: %+v, %v", report, err)
	}
	// What is put beside the snapshot on either side comes together.
	_, ours := newKey(t)
	_, theirs := newKey(t)
	if err := errors.Join(from.repo.Sign(t.Context(), last, ours), to.repo.Sign(t.Context(), got, theirs), from.repo.SetPrefetch(t.Context(), last.ID(), list(7, 8))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err = to.repo.CopyFrom(t.Context(), from.repo, last.ID(), nil); err != nil {
			t.Fatal(err)
		}
		if all, err := to.repo.Signatures(t.Context(), last.ID()); err != nil || len(all) != 2 {
			t.Errorf("%d signatures, %v", len(all), err)
		}
	}
	if p, err := to.repo.Prefetch(t.Context(), last.ID()); err != nil || p.Len() != 2 {
		t.Errorf("the prefetch list is %v, %v", p, err)
	}
}

// TestCopyResumes cancels a copy again and again: what was published stays, and
// no state in between is one that can't be opened.
func TestCopyResumes(t *testing.T) {
	from, to := newWorld(t), newWorld(t)
	last := family(t, from)[2]
	for limit := int64(1); ; limit += 30 * page {
		ctx, cancel := context.WithCancel(t.Context())
		report, err := to.repo.CopyFrom(ctx, from.repo, last.ID(), func(done, _ int64) {
			if done >= limit {
				cancel()
			}
		})
		cancel()
		infos, listErr := to.repo.List(t.Context(), func(id uuid.UUID, err error) { t.Errorf("%s: %v", id, err) })
		if listErr != nil {
			t.Fatal(listErr)
		}
		for _, i := range infos {
			s, err := to.repo.OpenID(t.Context(), i.ID)
			if err == nil {
				err = to.repo.Verify(t.Context(), s, nil)
				s.Close()
			}
			if err != nil {
				t.Errorf("after %d bytes: %v", limit, err)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(to.root, ".drafts", "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if err == nil {
			if len(report.Copied) > 1 && limit > 1 {
				t.Logf("copied %d at the end", len(report.Copied))
			}
			nothingLeft(t, to)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	t.Run("another of the same id", func(t *testing.T) {
		from, to := newWorld(t), newWorld(t)
		id := uuid.New()
		from.add(t, id, nil, simple(1))
		to.add(t, id, nil, simple(2))
		_, err := to.repo.CopyFrom(t.Context(), from.repo, id, nil)
		var conflict *snapshot.ConflictError
		if !errors.As(err, &conflict) || conflict.ID != id || !errors.Is(err, store.ErrExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("what is not there", func(t *testing.T) {
		var missing *snapshot.NotFoundError
		if _, err := newWorld(t).repo.CopyFrom(t.Context(), newWorld(t).repo, uuid.New(), nil); !errors.As(err, &missing) {
			t.Errorf("got %v", err)
		}
	})
	for _, name := range []string{snapshot.DiskFile, snapshot.MemoryFile, snapshot.StateFile, snapshot.MemoryHeader} {
		t.Run("damaged "+name, func(t *testing.T) {
			from, to := newWorld(t), newWorld(t)
			all := family(t, from)
			first, last := all[0], all[2]
			for _, s := range all {
				s.Close() // that headers are read again
			}
			data, err := os.ReadFile(from.file(first.ID(), name))
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(from.file(first.ID(), name), data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = to.repo.CopyFrom(t.Context(), from.repo, last.ID(), nil)
			var frame *block.CorruptError
			var artifact *snapshot.CorruptError
			if !errors.As(err, &frame) && !errors.As(err, &artifact) {
				t.Errorf("got %v", err)
			}
			if infos, _ := to.repo.List(t.Context(), nil); len(infos) != 0 {
				t.Errorf("copied %d", len(infos))
			}
		})
	}
	t.Run("wrong at the destination", func(t *testing.T) {
		from, to := newWorld(t), newWorld(t)
		s := from.add(t, uuid.New(), nil, simple(1))
		repo, err := snapshot.Open(badStore{to.store}, to.cache)
		if err != nil {
			t.Fatal(err)
		}
		_, err = repo.CopyFrom(t.Context(), from.repo, s.ID(), nil)
		if err == nil || !strings.Contains(err.Error(), "the copy is not what was written") {
			t.Errorf("got %v", err)
		}
		if infos, _ := to.repo.List(t.Context(), nil); len(infos) != 0 {
			t.Errorf("copied %d", len(infos))
		}
	})
}

// badStore writes one bit wrong.
type badStore struct{ store.Store }

func (b badStore) Begin(ctx context.Context, id uuid.UUID) (store.Draft, error) {
	d, err := b.Store.Begin(ctx, id)
	return badDraft{d}, err
}

type badDraft struct{ store.Draft }

func (b badDraft) Create(name string) (store.File, error) {
	f, err := b.Draft.Create(name)
	if name == snapshot.MemoryFile {
		return badFile{f}, err
	}
	return f, err
}

type badFile struct{ store.File }

func (b badFile) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	p[len(p)/2] ^= 4
	return b.File.Write(p)
}

func TestSquash(t *testing.T) {
	w := newWorld(t)
	last := family(t, w)[2]
	var done, total int64
	flat, err := w.repo.Squash(t.Context(), uuid.New(), last, block.Plain, func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	defer flat.Close()
	if done != total || total == 0 {
		t.Errorf("%d of %d bytes", done, total)
	}
	m := flat.Metadata()
	if len(m.Layers) != 0 || m.Parent != uuid.Nil || m.Generation != 0 || m.Origin != last.ID() {
		t.Errorf("layers %v, parent %s, generation %d, origin %s", m.Layers, m.Parent, m.Generation, m.Origin)
	}
	if !bytes.Equal(content(t, flat.Disk()), content(t, last.Disk())) || !bytes.Equal(content(t, flat.Memory()), content(t, last.Memory())) {
		t.Error("it holds other bytes")
	}
	state, err := flat.State(t.Context())
	if err != nil || string(state) != "third" {
		t.Errorf("state %q, %v", state, err)
	}
	want := *last.Metadata()
	want.ID, want.Parent, want.Origin, want.Generation, want.Layers, want.Artifacts, want.Created = m.ID, m.Parent, m.Origin, 0, nil, m.Artifacts, m.Created
	if diff := cmp.Diff(&want, m); diff != "" {
		t.Error(diff)
	}
	if err := w.repo.Verify(t.Context(), flat, nil); err != nil {
		t.Error(err)
	}
}

func TestSquashDamaged(t *testing.T) {
	w := newWorld(t)
	all := family(t, w)
	data, err := os.ReadFile(w.file(all[0].ID(), snapshot.MemoryFile))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(w.file(all[0].ID(), snapshot.MemoryFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	var frame *block.CorruptError
	if _, err := w.repo.Squash(t.Context(), id, all[2], block.Plain, nil); !errors.As(err, &frame) {
		t.Errorf("got %v", err)
	}
	if _, err := w.store.Open(t.Context(), id, snapshot.MetadataFile); !errors.Is(err, store.ErrNoSnapshot) {
		t.Errorf("published: %v", err)
	}
}
