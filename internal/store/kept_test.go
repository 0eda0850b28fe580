package store_test

import (
	"context"
	"errors"
	"io"
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
	"github.com/sporevm/spore/internal/store/storetest"
)

// keeping is a store whose drafts are all kept ones.
type keeping struct{ *store.Dir }

func (k keeping) Begin(ctx context.Context, id uuid.UUID) (store.Draft, error) {
	d, err := k.BeginKept(ctx, id, "content")
	if err != nil {
		return nil, err
	}
	return d, nil
}

// TestKeptContract has kept drafts keep the contract of all drafts.
func TestKeptContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		root := filepath.Join(t.TempDir(), "store")
		t.Cleanup(func() {
			for _, name := range files(t, root) {
				if strings.HasPrefix(name, ".drafts") || strings.HasPrefix(name, ".partial") {
					t.Errorf("left %s", name)
				}
			}
		})
		return keeping{openDir(t, root)}, func() store.Store { return keeping{openDir(t, root)} }
	})
}

func beginKept(t testing.TB, d *store.Dir, id uuid.UUID) store.KeptDraft {
	t.Helper()
	draft, err := d.BeginKept(t.Context(), id, "content")
	if err != nil {
		t.Fatal(err)
	}
	return draft
}

// goOn continues an object that should hold what is wanted, and writes more.
func goOn(t testing.TB, draft store.KeptDraft, name, want, more string) {
	t.Helper()
	f, err := draft.Continue(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if string(got) != want || err != nil {
		t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
	}
	_, err = io.WriteString(f, more)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// kept breaks a draft off that has written to two objects, and returns its folder.
func kept(t testing.TB, d *store.Dir, id uuid.UUID) string {
	t.Helper()
	draft := beginKept(t, d, id)
	goOn(t, draft, "memfile", "", "memory")
	goOn(t, draft, "rootfs.ext4", "", "disk")
	if err := draft.Keep(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d.Root(), ".partial", id.String()+".content")
}

// finish writes the manifest and publishes.
func finish(t testing.TB, draft store.KeptDraft) {
	t.Helper()
	f, err := draft.Create(store.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(f, "{}")
	if err := errors.Join(err, f.Close(), draft.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// TestKeptWhenCutShort interrupts a copy at its very end: all that it has brought is there for the next.
func TestKeptWhenCutShort(t *testing.T) {
	d, id := openDir(t, t.TempDir()), uuid.New()
	draft := beginKept(t, d, id)
	goOn(t, draft, "memfile", "", "memory")
	f, err := draft.Create(store.Manifest)
	if err == nil {
		_, err = io.WriteString(f, "{}")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := draft.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("publishing when nobody wants it any more: %v", err)
	}
	draft = beginKept(t, d, id)
	goOn(t, draft, "memfile", "memory", ", all of it")
	finish(t, draft)
	wantFiles(t, d, id, map[string]string{"memfile": "memory, all of it", store.Manifest: "{}"})
}

// wantFiles wants all that is in the store to be some files of a snapshot.
func wantFiles(t testing.TB, d *store.Dir, id uuid.UUID, want map[string]string) {
	t.Helper()
	names := []string{id.String()}
	for name, content := range want {
		names = append(names, filepath.Join(id.String(), name))
		got, err := os.ReadFile(filepath.Join(d.Root(), id.String(), name))
		if string(got) != content || err != nil {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, content)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(names, files(t, d.Root())); diff != "" {
		t.Error(diff)
	}
}

// TestKept goes on with what a draft left, and with no more of it than is wanted.
func TestKept(t *testing.T) {
	d, id := openDir(t, t.TempDir()), uuid.New()
	kept(t, d, id)
	d = openDir(t, d.Root()) // which sweeps
	if ids, err := d.List(t.Context()); len(ids) > 0 || err != nil {
		t.Errorf("listed %v, %v", ids, err)
	}
	for _, content := range []string{"", "..", "a/b"} {
		if draft, err := d.BeginKept(t.Context(), id, content); !errors.Is(err, store.ErrBadName) {
			t.Errorf("content %q: %v, %v", content, draft, err)
		}
	}
	other, err := d.BeginKept(t.Context(), id, "other")
	if err != nil {
		t.Fatal(err)
	}
	goOn(t, other, "memfile", "", "other")
	if err := other.Abort(); err != nil {
		t.Error(err)
	}
	draft := beginKept(t, d, id)
	f, err := draft.Continue("memfile")
	if err != nil || f.Size() != 6 {
		t.Fatal(f.Size(), err)
	}
	if err := f.Truncate(3); err != nil || f.Size() != 3 {
		t.Errorf("cut to %d bytes, %v", f.Size(), err)
	}
	if _, err := io.WriteString(f, "ento"); err != nil || f.Size() != 7 {
		t.Errorf("%d bytes, %v", f.Size(), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Truncate(0); err == nil {
		t.Error("cut after it was closed")
	}
	finish(t, draft) // without rootfs.ext4
	if err := draft.Keep(); err != nil {
		t.Error(err)
	}
	wantFiles(t, d, id, map[string]string{"memfile": "memento", store.Manifest: "{}"})
	if _, err := d.BeginKept(t.Context(), id, "content"); !errors.Is(err, store.ErrExist) {
		t.Errorf("begun though it is there: %v", err)
	}
}

// TestKeptStrange has something else lie where a draft left an object.
func TestKeptStrange(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, lay := range map[string]func(path string) error{
		"a link":   func(path string) error { return os.Symlink(outside, path) },
		"a pipe":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a folder": func(path string) error { return os.MkdirAll(filepath.Join(path, "deep"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			d, id := openDir(t, t.TempDir()), uuid.New()
			path := kept(t, d, id)
			for _, name := range []string{"memfile", "memfile.header", "stray"} {
				if err := errors.Join(os.RemoveAll(filepath.Join(path, name)), lay(filepath.Join(path, name))); err != nil {
					t.Fatal(err)
				}
			}
			draft := beginKept(t, d, id)
			goOn(t, draft, "memfile", "", "fresh")
			f, err := draft.Create("memfile.header")
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.WriteString(f, "head")
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			goOn(t, draft, "rootfs.ext4", "disk", "")
			finish(t, draft)
			wantFiles(t, d, id, map[string]string{"memfile": "fresh", "memfile.header": "head", "rootfs.ext4": "disk", store.Manifest: "{}"})
			if got, err := os.ReadFile(outside); string(got) != "precious" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	t.Run("in place of its folder", func(t *testing.T) {
		d, id := openDir(t, t.TempDir()), uuid.New()
		path := kept(t, d, id)
		if err := errors.Join(os.RemoveAll(path), os.Symlink(filepath.Dir(outside), path)); err != nil {
			t.Fatal(err)
		}
		draft := beginKept(t, d, id)
		goOn(t, draft, "memfile", "", "fresh")
		finish(t, draft)
		if entries, err := os.ReadDir(filepath.Dir(outside)); len(entries) != 1 || err != nil {
			t.Errorf("%v, %v", entries, err)
		}
		d = openDir(t, d.Root())
		wantFiles(t, d, id, map[string]string{"memfile": "fresh", store.Manifest: "{}"})
	})
}

// TestKeptTogether has two drafts of one content at once: the second keeps to itself.
func TestKeptTogether(t *testing.T) {
	d, id := openDir(t, t.TempDir()), uuid.New()
	kept(t, d, id)
	first, second := beginKept(t, d, id), beginKept(t, openDir(t, d.Root()), id)
	goOn(t, second, "memfile", "", "mine")
	goOn(t, first, "memfile", "memory", "")
	third := beginKept(t, d, id)
	goOn(t, third, "memfile", "", "gone")
	if err := third.Keep(); err != nil { // there is no place where it could be
		t.Error(err)
	}
	finish(t, second)
	f, err := first.Create(store.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := first.Commit(t.Context()); !errors.Is(err, store.ErrExist) {
		t.Errorf("the second to publish: %v", err)
	}
	wantFiles(t, d, id, map[string]string{"memfile": "mine", store.Manifest: "{}"})
}

// TestSweepPartials removes what is old, and what is of no more use.
func TestSweepPartials(t *testing.T) {
	d := openDir(t, t.TempDir())
	if freed, err := d.Sweep(t.Context(), time.Now()); freed != 0 || err != nil {
		t.Errorf("of an empty store %d bytes are freed, %v", freed, err)
	}
	young, old, held, published := uuid.New(), uuid.New(), uuid.New(), uuid.New()
	long := time.Now().Add(-2 * time.Hour)
	for _, id := range []uuid.UUID{young, old, held, published} {
		path := kept(t, d, id)
		if id == young {
			continue
		}
		for _, name := range []string{"memfile", "rootfs.ext4", "."} {
			if err := os.Chtimes(filepath.Join(path, name), long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	draft := beginKept(t, d, held)
	storetest.Publish(t, d, published, nil)
	openDir(t, d.Root())
	left := func() []uuid.UUID {
		var ids []uuid.UUID
		entries, err := os.ReadDir(filepath.Join(d.Root(), ".partial"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			ids = append(ids, uuid.MustParse(strings.TrimSuffix(e.Name(), ".content")))
		}
		return ids
	}
	want := []uuid.UUID{young, old, held}
	sorted := cmp.Transformer("sorted", func(ids []uuid.UUID) map[uuid.UUID]bool {
		all := map[uuid.UUID]bool{}
		for _, id := range ids {
			all[id] = true
		}
		return all
	})
	if diff := cmp.Diff(want, left(), sorted); diff != "" {
		t.Errorf("after opening: %s", diff)
	}
	if freed, err := d.Sweep(t.Context(), time.Now().Add(-time.Hour)); freed != int64(len("memory")+len("disk")) || err != nil {
		t.Errorf("%d bytes are freed, %v", freed, err)
	}
	if diff := cmp.Diff([]uuid.UUID{young, held}, left(), sorted); diff != "" {
		t.Errorf("after a sweep: %s", diff)
	}
	goOn(t, draft, "memfile", "memory", "")
	finish(t, draft)
}

// TestKeptFull runs out of space: then nothing is kept.
func TestKeptFull(t *testing.T) {
	root := tmpfs(t, "size=512k")
	d, id := openDir(t, root), uuid.New()
	kept(t, d, id)
	draft := beginKept(t, d, id)
	f, err := draft.Continue("memfile")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 1<<20))
	wantFull(t, err, "memfile", id.String())
	if err := draft.Keep(); err != nil {
		t.Error(err)
	}
	if left := files(t, root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestKeptSwept has kept drafts begin and be given up while others sweep everything
// that they can: no draft may lose its folder.
func TestKeptSwept(t *testing.T) {
	d, id := openDir(t, t.TempDir()), uuid.New()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				_, err = d.Sweep(context.Background(), time.Now().Add(time.Hour))
			}
		}
		stopped <- err
	}()
	for range 200 {
		draft := beginKept(t, d, id)
		f, err := draft.Create("memfile")
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(f, "x")
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if err := draft.Keep(); err != nil {
			t.Fatal(err)
		}
	}
	draft := beginKept(t, d, id)
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	finish(t, draft)
}
