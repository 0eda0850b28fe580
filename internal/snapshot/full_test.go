package snapshot_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// tmpfs mounts a file system in memory with the given options.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	return mount(t, "tmpfs", options)
}

func mount(t *testing.T, kind, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root may mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("spore-test", dir, kind, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mounting a %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH) // at least leave no mount behind
		}
	})
	return dir
}

// TestCacheFull has a disk that holds one memory, not two.
func TestCacheFull(t *testing.T) {
	cache := tmpfs(t, "size=1m")
	w := openWorld(t, t.TempDir(), cache)
	var snaps []*snapshot.Snapshot
	for i := range 2 {
		snaps = append(snaps, w.add(t, uuid.New(), nil, change{memory: map[int64][]byte{0: pages(i, 150)}, state: "x"}))
	}
	first, err := w.repo.FlatMemory(t.Context(), snaps[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	before := below(t, cache)
	_, err = w.repo.FlatMemory(t.Context(), snaps[1], nil)
	if !errors.Is(err, store.ErrFull) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), cache) || !strings.Contains(err.Error(), snaps[1].ID().String()) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, below(t, cache)); diff != "" {
		t.Errorf("left: %s", diff)
	}
	first.Close() // now it may go, if that makes room
	second, err := w.repo.FlatMemory(t.Context(), snaps[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if got, err := os.ReadFile(second.Name()); err != nil || !bytes.Equal(got, content(t, snaps[1].Memory())) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if evicted(t, first.Name()) != "a" {
		t.Error("the other memory is still there")
	}
}

// TestStoreFull runs out of space at every stage of a snapshot.
func TestStoreFull(t *testing.T) {
	root := tmpfs(t, "size=2m")
	w := openWorld(t, root, t.TempDir())
	base := w.add(t, uuid.New(), nil, simple(1))
	before := below(t, root)
	ballast := filepath.Join(root, "ballast")
	failed := 0
	for free := int64(0); ; free += 2 * page {
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ballast, make([]byte, max(0, int64(st.Bavail)*st.Bsize-free)), 0o600); err != nil {
			t.Fatal(err)
		}
		id := uuid.New()
		s, err := w.make(t.Context(), id, base, simple(9), machine())
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if err := w.repo.Verify(t.Context(), s, nil); err != nil {
				t.Error(err)
			}
			s.Close()
			break
		}
		failed++
		if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), id.String()) {
			t.Fatalf("got %v", err)
		}
		if diff := cmp.Diff(before, below(t, root)); diff != "" {
			t.Fatalf("left: %s", diff)
		}
	}
	if failed < 10 {
		t.Errorf("it failed only %d times", failed)
	}
	if err := w.repo.Verify(t.Context(), base, nil); err != nil {
		t.Error(err)
	}
}
