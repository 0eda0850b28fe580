package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/storetest"
)

func ctx() context.Context { return context.Background() }

// tmpfs mounts a file system in memory with the given options.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root may mount a small file system")
	}
	root := t.TempDir()
	if err := unix.Mount("spore-test", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(root, unix.MNT_DETACH) // at least leave no mount behind
		}
	})
	return root
}

// TestDiskFull runs out of bytes in the middle of a file.
func TestDiskFull(t *testing.T) {
	root := tmpfs(t, "size=512k")
	d := openDir(t, root)
	old, id := uuid.New(), uuid.New()
	storetest.Publish(t, d, old, content)
	before := files(t, root)

	draft, err := d.Begin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	f, err := draft.Create("memfile")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 1<<20))
	wantFull(t, err, "memfile", id.String())
	// Whoever overlooks the error can't publish what is left.
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := draft.Create(store.Manifest); !errors.Is(err, store.ErrFull) {
		t.Errorf("going on after a failed write: %v", err)
	}
	wantFull(t, draft.Commit(t.Context()), id.String())
	if after := files(t, root); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left %v, want %v", after, before)
	}
	whole(t, d, old)
	storetest.Publish(t, d, id, map[string]string{"memfile": "smaller"}) // the space is back
}

// TestDiskFullOfFiles runs out of inodes at every place of a publication.
func TestDiskFullOfFiles(t *testing.T) {
	root := tmpfs(t, "nr_inodes=24")
	d := openDir(t, root)
	old, id := uuid.New(), uuid.New()
	storetest.Publish(t, d, old, content)
	if err := d.SetName(t.Context(), "name", old); err != nil {
		t.Fatal(err)
	}
	var ballast []string
	fill := func() {
		for {
			path := filepath.Join(root, "ballast-"+uuid.NewString())
			f, err := os.Create(path)
			if err != nil {
				return
			}
			f.Close()
			ballast = append(ballast, path)
		}
	}
	fill()
	tries := 0
	for ; ; tries++ {
		err := publish(d, id)
		if err == nil {
			break
		}
		wantFull(t, err, id.String())
		if left, _ := filepath.Glob(filepath.Join(root, ".drafts", "*")); len(left) > 0 {
			t.Errorf("left %v", left)
		}
		if len(ballast) == 0 {
			t.Fatal("it never fits")
		}
		if err := os.Remove(ballast[0]); err != nil {
			t.Fatal(err)
		}
		ballast = ballast[1:]
	}
	if tries < 3 {
		t.Errorf("only %d places were short", tries)
	}
	whole(t, d, id)
	fill()
	wantFull(t, d.SetName(t.Context(), "name", id))
	wantNames(t, d, map[string]uuid.UUID{"name": old})
	// Space can be made when there is none at all.
	if err := d.Remove(t.Context(), id, nil); err != nil {
		t.Error(err)
	}
	whole(t, d, old)
}

func wantFull(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, store.ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want %v", err, store.ErrFull)
	}
	for _, word := range append(words, "removing snapshots") {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not speak of %q", err, word)
		}
	}
}

// TestReadOnly opens a store on a file system that is mounted read-only.
func TestReadOnly(t *testing.T) {
	root := tmpfs(t, "size=1m")
	d := openDir(t, root)
	id := uuid.New()
	storetest.Publish(t, d, id, content)
	if err := d.SetName(t.Context(), "name", id); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, ".drafts", "dead"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	d = openDir(t, root)
	whole(t, d, id)
	wantNames(t, d, map[string]uuid.UUID{"name": id})
	pin, err := d.Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	pin.Close()
	for _, err := range []error{publish(d, uuid.New()), d.Remove(t.Context(), id, nil), d.SetName(t.Context(), "b", id)} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("got %v", err)
		}
	}
	whole(t, d, id)
}
