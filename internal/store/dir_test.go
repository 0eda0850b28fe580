package store_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/flock"
	"github.com/sporevm/spore/internal/store/storetest"
)

func openDir(t testing.TB, path string) *store.Dir {
	t.Helper()
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// files returns all that is below a directory, but not the store's own empty
// folders.
func files(t testing.TB, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err == nil && rel != "." && rel != ".drafts" && rel != ".partial" && rel != ".names" {
			found = append(found, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		root := filepath.Join(t.TempDir(), "not", "there", "yet")
		t.Cleanup(func() { // whatever a test did, it left no drafts
			for _, name := range files(t, root) {
				if strings.HasPrefix(name, ".drafts") {
					t.Errorf("left %s", name)
				}
			}
		})
		return openDir(t, root), func() store.Store { return openDir(t, root) }
	})
}

func TestOpenDirLeavesNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	d := openDir(t, root)
	if _, err := d.List(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("looking made the directory: %v", err)
	}
	if d.Root() != root {
		t.Errorf("root %q", d.Root())
	}
}

func TestOpenDirNotADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenDir(path); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v", err)
	}
}

func TestPrivate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	d := openDir(t, root)
	id := uuid.New()
	storetest.Publish(t, d, id, map[string]string{"memfile": "secret"})
	if err := d.SetName(t.Context(), "name", id); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignFolders has a store hold what is not its own.
func TestForeignFolders(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	good, empty, bare, linked := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	storetest.Publish(t, d, good, nil)
	mkdir := func(name string) string {
		path := filepath.Join(root, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mkdir("lost+found")
	mkdir(strings.ToUpper(uuid.NewString()))
	mkdir(empty.String())
	if err := os.WriteFile(filepath.Join(mkdir(bare.String()), "memfile"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(good.String(), filepath.Join(root, linked.String())); err != nil {
		t.Fatal(err)
	}
	ids, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uuid.UUID{good}, ids); diff != "" {
		t.Error(diff)
	}
	if _, err := d.Begin(t.Context(), bare); !errors.Is(err, store.ErrExist) || !strings.Contains(err.Error(), "remove it first") {
		t.Errorf("got %v", err)
	}
	if err := d.Remove(t.Context(), bare, nil); err != nil {
		t.Error(err)
	}
	storetest.Publish(t, d, bare, nil)
	if _, err := d.Pin(t.Context(), linked); err == nil {
		t.Error("pinned a link")
	}
}

// TestHostileObjects has objects that are no regular files.
func TestHostileObjects(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	id := uuid.New()
	storetest.Publish(t, d, id, nil)
	folder := filepath.Join(root, id.String())
	if err := os.Symlink("/etc/passwd", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(folder, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "pipe", "folder"} {
		if o, err := d.Open(t.Context(), id, name); err == nil {
			o.Close()
			t.Errorf("opened a %s", name)
		} else if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), id.String()) {
			t.Errorf("error %q names too little", err)
		}
	}
}

// TestSweep leaves drafts in all states and opens the store.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	alive, err := d.Begin(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Abort()
	f, err := alive.Create("memfile")
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, root)
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(root, ".drafts", uuid.NewString()+".123")
	if err := os.MkdirAll(filepath.Join(dead, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{dead + ".link", filepath.Join(dead, "link")} {
		if err := os.Symlink(filepath.Dir(outside), link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dead+".file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, ".names"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{".new": "half", "dangling": uuid.NewString() + "\n"} {
		if err := os.WriteFile(filepath.Join(root, ".names", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openDir(t, root)
	if diff := cmp.Diff(before, files(t, root)); diff != "" {
		t.Errorf("what a sweep left is not just the living draft: %s", diff)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a sweep followed a link: %v", err)
	}
	if _, err := io.WriteString(f, "still writing"); err != nil {
		t.Error(err)
	}
}

// TestDamagedNames has name files that say nothing of use.
func TestDamagedNames(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	id := uuid.New()
	storetest.Publish(t, d, id, nil)
	if err := d.SetName(t.Context(), "good", id); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty": "", "cut": id.String()[:20] + "\n", "unended": id.String(), "long": id.String() + "\n\n",
		"upper": strings.ToUpper(id.String()) + "\n", "bad name": id.String() + "\n", "huge": strings.Repeat("x", 1<<20),
	} {
		if err := os.WriteFile(filepath.Join(root, ".names", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, ".names", "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := d.Names(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uuid.UUID{"good": id}, names); diff != "" {
		t.Error(diff)
	}
	if err := d.SetName(t.Context(), "cut", id); err != nil { // naming repairs
		t.Error(err)
	}
}

// TestDraftLock checks that a draft is locked from the start and that the lock
// goes with it.
func TestDraftLock(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	draft, err := d.Begin(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	folders, err := filepath.Glob(filepath.Join(root, ".drafts", "*"))
	if err != nil || len(folders) != 1 {
		t.Fatal(folders, err)
	}
	f, err := os.Open(folders[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flock.Try(f, flock.Exclusive); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("a living draft: %v", err)
	}
	if err := draft.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := flock.Try(f, flock.Exclusive); err != nil {
		t.Errorf("a dead draft: %v", err)
	}
	if current, err := flock.Current(f, folders[0]); err != nil || current {
		t.Errorf("current: %t, %v", current, err)
	}
}

// TestSweepersAndWriters has stores opened all the time while drafts begin: none
// may lose its folder.
func TestSweepersAndWriters(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				_, err = store.OpenDir(root)
			}
		}
		<-stop
		stopped <- err
	}()
	var want []string
	for range 150 {
		id := uuid.New()
		storetest.Publish(t, d, id, map[string]string{"memfile": "x"})
		want = append(want, id.String())
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	ids, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, id := range ids {
		got = append(got, id.String())
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, name := range []string{"a", "team/python:3.12", "..", "a/../b", "", uuid.NewString(), "a+b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if store.CheckName(name) != nil {
			return
		}
		if _, err := uuid.Parse(name); err == nil {
			t.Errorf("%q reads as an id", name)
		}
		file := strings.ReplaceAll(name, "/", "+")
		if len(file) > 128 || !filepath.IsLocal(name) || !filepath.IsLocal(file) || strings.ContainsAny(file, "/\x00") || file[0] == '.' {
			t.Errorf("%q is no safe name of a file", name)
		}
	})
}

// TestRemoveCancelled gives up while a snapshot is being removed: once it is gone,
// all of it goes.
func TestRemoveCancelled(t *testing.T) {
	root := t.TempDir()
	d := openDir(t, root)
	id := uuid.New()
	storetest.Publish(t, d, id, nil)
	if err := d.SetName(t.Context(), "name", id); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(filepath.Join(root, ".names")) // somebody else is naming
	if err != nil {
		t.Fatal(err)
	}
	if err := flock.Try(lock, flock.Exclusive); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	store.At(d, func(point string) {
		if point == "remove: after the rename" {
			cancel()
			time.AfterFunc(30*time.Millisecond, func() { lock.Close() })
		}
	})
	if err := d.Remove(ctx, id, nil); err != nil {
		t.Error(err)
	}
	if left := files(t, root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
