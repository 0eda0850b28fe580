package cli

import (
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/pager/uffd"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// needUserfault skips a test where the kernel serves no page faults to this user.
func needUserfault(t *testing.T) {
	t.Helper()
	fd, _, err := uffd.Open(uffd.EventRemove)
	if err != nil {
		t.Skipf("this machine gives no userfaultfd: %v", err)
	}
	fd.Close()
}

// A snapshot's memory from a store, through the processes that are there in real life.
func TestServePages(t *testing.T) {
	needUserfault(t)
	root := t.TempDir()
	st, err := store.OpenDir(filepath.Join(root, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, filepath.Join(root, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 << 20
	memory := make([]byte, size)
	rand.New(rand.NewSource(1)).Read(memory[size/4 : size/2])
	flat := filepath.Join(root, "flat")
	if err := os.WriteFile(flat, memory, 0o600); err != nil {
		t.Fatal(err)
	}
	commit := func(memory []byte) string {
		d, err := repo.NewDraft(t.Context(), uuid.New(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Abort()
		if _, err := d.Disk(1 << 20); err != nil {
			t.Fatal(err)
		}
		m := snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64"}
		if memory != nil {
			w, err := d.Memory(size)
			if err == nil {
				err = w.Write(0, memory)
			}
			if err == nil {
				err = d.State([]byte("none"))
			}
			if err != nil {
				t.Fatal(err)
			}
			m.VCPUs, m.Engine = 1, snapshot.Engine{Name: "none", Version: "1"}
		}
		s, err := d.Commit(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.ID().String()
	}
	whole, diskOnly := commit(memory), commit(nil)
	tracker, err := pager.NewTracker(pager.Config{
		Command: []string{"spore", servePages, "--store", filepath.Join(root, "store")}, StateDir: filepath.Join(root, "pagers"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tracker.CloseAll(); err != nil {
			t.Error(err)
		}
	}()
	for id, why := range map[string]string{diskOnly: "it has no memory to serve", uuid.NewString(): "no snapshot", "x": "invalid UUID"} {
		if _, err := tracker.Acquire(t.Context(), id, pager.Fork{ID: "a"}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("template %s: %v, want …%s…", id, err, why)
		}
	}
	path, err := tracker.Acquire(t.Context(), whole, pager.Fork{ID: "a", UID: os.Geteuid()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagertest.Start(exec.Command("spore", benchProcess, "client"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Map(pagertest.Region{Size: size, PageSize: 4 << 10}); err != nil {
		t.Fatal(err)
	}
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Touch(pagertest.Touch{To: size, Step: 4 << 10, Seed: 1, Threads: 2, Expect: flat})
	if err != nil || len(got.Wrong) > 0 {
		t.Errorf("wrong pages %v: %v", got.Wrong, err)
	}
}
