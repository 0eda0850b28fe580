package snapshot_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
)

// evicted tells whose flat memory is gone.
func evicted(t *testing.T, paths ...string) string {
	t.Helper()
	var gone strings.Builder
	for i, path := range paths {
		if _, err := os.Stat(path); err != nil {
			gone.WriteByte(byte('a' + i))
		}
	}
	return gone.String()
}

func TestTrimCache(t *testing.T) {
	w := newWorld(t)
	var snaps []*snapshot.Snapshot
	var paths []string
	for i := range 4 {
		s := w.add(t, uuid.New(), nil, change{memory: map[int64][]byte{0: pages(i, 50)}, disk: map[int64][]byte{}, state: "x"})
		f, err := w.repo.FlatMemory(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		snaps, paths = append(snaps, s), append(paths, f.Name())
		time.Sleep(10 * time.Millisecond) // they are told apart by when they were used
	}
	if freed, err := w.repo.TrimCache(t.Context(), 1<<30); err != nil || freed != 0 || evicted(t, paths...) != "" {
		t.Errorf("freed %d with room enough, %v", freed, err)
	}
	used, err := w.repo.FlatMemory(t.Context(), snaps[1], nil) // the second oldest, in use
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.repo.FlatMemory(t.Context(), snaps[0], nil) // the oldest, used just now
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	freed, err := w.repo.TrimCache(t.Context(), 2*52*page) // room for two that nobody uses
	if err != nil || freed < 50*page || evicted(t, paths...) != "c" {
		t.Errorf("freed %d, gone: %q, %v", freed, evicted(t, paths...), err)
	}
	freed, err = w.repo.TrimCache(t.Context(), 0)
	if err != nil || freed < 100*page || evicted(t, paths...) != "acd" {
		t.Errorf("freed %d, gone: %q, %v", freed, evicted(t, paths...), err)
	}
	// A duplicate of the descriptor, as a machine inherits it, keeps it too.
	dup, err := unix.FcntlInt(used.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	used.Close()
	if _, err = w.repo.TrimCache(t.Context(), 0); err != nil || evicted(t, paths...) != "acd" {
		t.Errorf("gone: %q, %v", evicted(t, paths...), err)
	}
	if err := unix.Close(dup); err != nil {
		t.Fatal(err)
	}
	if _, err = w.repo.TrimCache(t.Context(), 0); err != nil || len(below(t, w.cache)) > 0 {
		t.Errorf("left %v, %v", below(t, w.cache), err)
	}
	for _, s := range snaps {
		flat(t, w, s)
	}
}

// TestCacheLimit keeps the cache small by itself.
func TestCacheLimit(t *testing.T) {
	w := newWorld(t, snapshot.CacheLimit(55*page))
	for i := range 4 {
		s := w.add(t, uuid.New(), nil, change{memory: map[int64][]byte{0: pages(i, 50)}, state: "x"})
		f, err := w.repo.FlatMemory(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(10 * time.Millisecond)
	}
	if left, _ := filepath.Glob(filepath.Join(w.cache, "memory", "*.mem")); len(left) != 2 { // the newest was in use when it was counted
		t.Errorf("left %v", left)
	}
}

// TestTrimWhileUsed evicts all the time while others use the memory: what they get
// is always whole.
func TestTrimWhileUsed(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	want := content(t, s.Memory())
	stop := make(chan struct{})
	var trimmer, users sync.WaitGroup
	trimmer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := openWorld(t, w.root, w.cache).repo.TrimCache(t.Context(), 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 3 {
		users.Go(func() {
			for range 40 {
				f, err := w.repo.FlatMemory(t.Context(), s, nil)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := os.ReadFile(f.Name()) // by its name: it must be there while it is in use
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				f.Close()
			}
		})
	}
	users.Wait()
	close(stop)
	trimmer.Wait()
}

// TestSweepCache removes what dead processes left in the cache, and nothing else.
func TestSweepCache(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	f, _ := flat(t, w, s)
	before := below(t, w.cache)
	dir, key := filepath.Dir(f.Name()), strings.Repeat("ab", 32)
	for _, name := range []string{key + ".mem.new.123", key + ".lock", key + ".seal.new", strings.Repeat("cd", 32) + ".seal"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openWorld(t, w.root, w.cache)
	if diff := cmp.Diff(before, below(t, w.cache)); diff != "" {
		t.Error(diff)
	}
}
