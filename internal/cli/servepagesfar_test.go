package cli

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
)

// TestPagersShareLayers serves two snapshots that share a layer from a bucket, each by a pager of its own. What the first has fetched the second needs no more to be
// there; where nobody has fetched it, its machine is ended.
func TestPagersShareLayers(t *testing.T) {
	needUserfault(t)
	ctx, root := t.Context(), t.TempDir()
	near, far := filepath.Join(root, "store"), services.URL("s3", "")
	t.Setenv("HOME", root)
	t.Setenv("SNAPSHOT_CACHE_DIR", filepath.Join(root, "cache"))
	if err := fillStore(near, filepath.Join(root, "other")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("spore", "--store", near, "copy", "child", far).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	flat := flatMemory(t, near, idChild)
	failed := make(chan error, 8)
	tracker, err := pager.NewTracker(pager.Config{
		Command: []string{"spore", servePages, "--store", far}, StateDir: filepath.Join(root, "pagers"), Failed: func(_ string, err error) { failed <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tracker.CloseAll(); err != nil {
			t.Error(err)
		}
	}()
	fork := func(id uuid.UUID, name string) *pagertest.Client {
		t.Helper()
		path, err := tracker.Acquire(ctx, id.String(), pager.Fork{ID: name, UID: os.Geteuid()})
		if err != nil {
			t.Fatal(err)
		}
		c, err := pagertest.Start(exec.Command("spore", benchProcess, "client"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		if err := errors.Join(c.Map(pagertest.Region{Size: testMemory, PageSize: 4 << 10}), c.Hello(pagertest.Hello{Path: path})); err != nil {
			t.Fatal(err)
		}
		return c
	}
	all := pagertest.Touch{To: testMemory, Step: 4 << 10, Expect: flatMemory(t, near, idParent)}
	if got, err := fork(idParent, "a").Touch(all); err != nil || len(got.Wrong) > 0 {
		t.Fatalf("wrong pages %v: %v", got.Wrong, err)
	}
	remote, err := bucket.Open(ctx, far, bucket.Options{TempDir: root})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Remove(ctx, idParent, nil); !errors.Is(err, store.ErrInUse) {
		t.Errorf("removing a snapshot whose memory is being served: %v", err)
	}
	// From here on the layer that both have is on this host alone.
	if err := errors.Join(tracker.Release("a"), remote.Remove(ctx, idParent, nil)); err != nil {
		t.Fatal(err)
	}
	all.Expect = flat
	if got, err := fork(idChild, "b").Touch(all); err != nil || len(got.Wrong) > 0 {
		t.Errorf("wrong pages %v: %v", got.Wrong, err)
	}
	if err := tracker.Release("b"); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "cache", "frames")); err != nil {
		t.Fatal(err)
	}
	c := fork(idChild, "c") // by a pager that has nothing yet
	if _, err := c.Touch(all); !errors.Is(err, pagertest.ErrDead) {
		t.Errorf("memory that is nowhere: %v", err)
	}
	select {
	case err := <-failed:
		if !strings.Contains(err.Error(), idParent.String()) {
			t.Errorf("memory of %s is nowhere: %v", idParent, err)
		}
	case <-time.After(time.Minute):
		t.Error("nobody hears why the machine was ended")
	}
}

// flatMemory returns the path of a file with a snapshot's memory.
func flatMemory(t *testing.T, dir string, id uuid.UUID) string {
	t.Helper()
	st, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := repo.OpenID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := repo.FlatMemory(t.Context(), s, func(_, _ int64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), "flat")
	memory, err := io.ReadAll(io.NewSectionReader(f, 0, testMemory))
	if err == nil {
		err = os.WriteFile(path, memory, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
