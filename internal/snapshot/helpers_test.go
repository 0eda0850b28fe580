package snapshot_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

const (
	page       = block.DefaultBlockSize
	diskSize   = 512 * page
	memorySize = 256 * page
)

// world is a store and a cache, and what works on them.
type world struct {
	root, cache string
	store       *store.Dir
	repo        *snapshot.Repo
}

func newWorld(t testing.TB, options ...snapshot.Option) world {
	t.Helper()
	dir := t.TempDir()
	return openWorld(t, filepath.Join(dir, "store"), filepath.Join(dir, "cache"), options...)
}

func openWorld(t testing.TB, root, cache string, options ...snapshot.Option) world {
	t.Helper()
	st, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, cache, options...)
	if err != nil {
		t.Fatal(err)
	}
	return world{root: root, cache: cache, store: st, repo: repo}
}

// file returns the path of a snapshot's file in the store.
func (w world) file(id uuid.UUID, name string) string {
	return filepath.Join(w.root, id.String(), name)
}

// machine is metadata as sandboxes write it.
func machine() snapshot.Metadata {
	return snapshot.Metadata{
		Kind:    snapshot.KindMachine,
		Arch:    "amd64",
		VCPUs:   2,
		Net:     "none",
		Engine:  snapshot.Engine{Name: "qemu", Version: "7.2.1", Machine: "microvm", Accel: "tcg"},
		CPU:     snapshot.CPU{Model: "max", TSCKHz: 2_400_000},
		Created: time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC),
	}
}

// pages returns n pages that differ from those of other seeds and from each other.
func pages(seed, n int) []byte {
	p := make([]byte, n*page)
	for i := range p {
		p[i] = byte(1 + (seed*31+i/page*7+i)%251)
	}
	return p
}

// change is what a snapshot writes to its images.
type change struct {
	disk, memory map[int64][]byte // by offset; nil memory for a disk alone
	state        string
}

// add makes a snapshot; parent may be nil. It is closed with the test.
func (w world) add(t testing.TB, id uuid.UUID, parent *snapshot.Snapshot, c change) *snapshot.Snapshot {
	t.Helper()
	s, err := w.make(t.Context(), id, parent, c, machine())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (w world) make(ctx context.Context, id uuid.UUID, parent *snapshot.Snapshot, c change, m snapshot.Metadata) (*snapshot.Snapshot, error) {
	return makeIn(ctx, w.repo, id, parent, c, m)
}

func makeIn(ctx context.Context, repo *snapshot.Repo, id uuid.UUID, parent *snapshot.Snapshot, c change, m snapshot.Metadata) (*snapshot.Snapshot, error) {
	d, err := repo.NewDraft(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	disk, err := d.Disk(diskSize)
	if err != nil {
		return nil, err
	}
	if err := writeAll(disk, diskSize, c.disk); err != nil {
		return nil, err
	}
	if c.memory != nil {
		if err := d.State([]byte(c.state)); err != nil {
			return nil, err
		}
		memory, err := d.Memory(memorySize)
		if err != nil {
			return nil, err
		}
		if err := writeAll(memory, memorySize, c.memory); err != nil {
			return nil, err
		}
	}
	return d.Commit(ctx, m)
}

func writeAll(w *block.Writer, size int64, parts map[int64][]byte) error {
	for off := int64(0); off < size; off += page {
		if p, ok := parts[off]; ok {
			if err := w.Write(off, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// simple is a machine with a little of everything.
func simple(seed int) change {
	return change{
		disk:   map[int64][]byte{0: pages(seed, 40), 100 * page: pages(seed+1, 3)},
		memory: map[int64][]byte{page: pages(seed+2, 33), 200 * page: pages(seed+3, 1)},
		state:  "device state",
	}
}

// content returns all bytes of an image.
func content(t testing.TB, r *block.Reader) []byte {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// over lays parts over a copy of base.
func over(base []byte, parts map[int64][]byte) []byte {
	p := bytes.Clone(base)
	for off, part := range parts {
		copy(p[off:], part)
	}
	return p
}

// below returns the files below a directory.
func below(t testing.TB, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(root, path)
			found = append(found, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
