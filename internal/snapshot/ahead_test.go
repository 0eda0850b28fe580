package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/snapshot"
)

// TestPagesWithDisk keeps memory and disk apart in one list.
func TestPagesWithDisk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory, disk := drawPages(t, "memory"), drawPages(t, "disk")
		got, err := snapshot.DecodePages(snapshot.EncodePages(memory.WithDisk(disk)))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Memory(), memory) || !slices.Equal(got.Disk(), disk) {
			t.Fatalf("%v and %v became %v and %v", memory, disk, got.Memory(), got.Disk())
		}
		if want := 4096 * (memory.Len() + disk.Len()); got.Size() != want {
			t.Fatalf("%d bytes, want %d", got.Size(), want)
		}
		other := drawPages(t, "other")
		if both := got.And(memory.WithDisk(other)); !slices.Equal(both.Disk(), disk.And(other)) {
			t.Fatalf("both list of the disk %v, want %v", both.Disk(), disk.And(other))
		}
	})
	// A run over the border, as nobody writes it.
	odd := snapshot.Pages{{First: 1<<31 - 2, Count: 5}}
	if m, d := odd.Memory(), odd.Disk(); !slices.Equal(m, snapshot.Pages{{First: 1<<31 - 2, Count: 2}}) || !slices.Equal(d, snapshot.Pages{{First: 0, Count: 3}}) {
		t.Errorf("it is %v and %v", m, d)
	}
}

// TestPagesWithDiskGolden holds lists with blocks of the disk to their bytes.
func TestPagesWithDiskGolden(t *testing.T) {
	testGolden(t, "disk.prefetch", list(7, 8, 9, 1000, 3).WithDisk(list(0, 1, 77, 5)))
}

// TestPagesWithDiskAsBefore reads such a list as those did who knew of memory alone:
// it plans what the pages of memory alone do.
func TestPagesWithDiskAsBefore(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	memory := list(20, 1, 2, 200, 3)
	fetcher := s.Memory().Fetcher()
	want := fetcher.Plan(memory.Bytes())
	if got := fetcher.Plan(memory.WithDisk(list(0, 1, 20, 100)).Bytes()); len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("the plan is %v, want %v", got, want)
	}
}

// farWorld is a world whose data files' reads are counted, and which is far away.
func farWorld(t *testing.T, near world) (*snapshot.Repo, *countingStore) {
	t.Helper()
	st := &countingStore{Store: near.store}
	cache := t.TempDir()
	repo, err := snapshot.Open(st, cache, snapshot.Far(framecache.Open(filepath.Join(cache, "frames"), 1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	return repo, st
}

// TestFetchDisk fetches what is listed of a disk and nothing else; who reads it then
// needs the store no more.
func TestFetchDisk(t *testing.T) {
	w := newWorld(t)
	parent := w.add(t, uuid.New(), nil, simple(1))
	s := w.add(t, uuid.New(), parent, change{disk: map[int64][]byte{0: pages(9, 2)}, memory: map[int64][]byte{page: pages(8, 1)}, state: "child"})
	// Of the child its only frame; of the parent the first and the last of three; a hole; what is no disk.
	blocks := list(1, 101, 2, 300, 1<<20)
	if err := w.repo.SetPrefetch(t.Context(), s.ID(), list(1, 2).WithDisk(blocks)); err != nil {
		t.Fatal(err)
	}
	repo, st := farWorld(t, w)
	far, err := repo.OpenID(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if n, err := repo.FetchDisk(t.Context(), far); n != 5*page || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	fetched := st.read.Load()
	if want := int64(2*page + frame + (43*page - 2*frame)); fetched != want {
		t.Errorf("%d bytes were read, want %d", fetched, want)
	}
	for _, block := range []int64{1, 101, 2, 300} {
		want, got := make([]byte, page), make([]byte, page)
		if _, err := s.Disk().ReadAt(want, block*page); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Disk().ReadAt(got, block*page); err != nil || !bytes.Equal(got, want) {
			t.Errorf("block %d is wrong: %v", block, err)
		}
	}
	if n := st.read.Load(); n != fetched {
		t.Errorf("%d bytes more were read", n-fetched)
	}
	if n, err := repo.FetchDisk(t.Context(), far); n != 5*page || err != nil || st.read.Load() != fetched {
		t.Errorf("again: %d bytes, %v, and %d read", n, err, st.read.Load()-fetched)
	}
	if n, err := w.repo.FetchDisk(t.Context(), s); n != 0 || err != nil {
		t.Errorf("from a store that is near: %d bytes, %v", n, err)
	}
}

// TestFetchDiskFails has the list or the disk be of no use: that is told.
func TestFetchDiskFails(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	repo, st := farWorld(t, w)
	fetch := func(ctx context.Context) error {
		t.Helper()
		far, err := repo.OpenID(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		far.Close() // it need not stay open
		_, err = repo.FetchDisk(ctx, far)
		return err
	}
	if err := fetch(t.Context()); err != nil {
		t.Errorf("without a list: %v", err)
	}
	if err := w.repo.SetPrefetch(t.Context(), s.ID(), list(1)); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context()); err != nil || st.read.Load() > 0 {
		t.Errorf("a list of memory alone: %v, %d bytes", err, st.read.Load())
	}
	if err := w.repo.SetPrefetch(t.Context(), s.ID(), list(1).WithDisk(list(0, 20))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fetch(ctx); !errors.Is(err, context.Canceled) || st.read.Load() > 0 {
		t.Errorf("after the end: %v, %d bytes", err, st.read.Load())
	}
	if err := patch(w.file(s.ID(), snapshot.DiskFile), 5, 1); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context()); err == nil {
		t.Error("a damaged frame was fetched")
	}
	if err := os.WriteFile(w.file(s.ID(), snapshot.PrefetchFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context()); !is[*snapshot.CorruptError](err) {
		t.Errorf("a damaged list: %v", err)
	}
}

func is[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}
