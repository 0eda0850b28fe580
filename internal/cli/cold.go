package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/sandbox"
)

// dropCaches makes the host forget what it has cached in memory of a snapshot: its own files, those of the layers it stands on, and its flat memory.
// This needs no privilege. Root drops everything else too: the VMM's program, for one.
func (a *app) dropCaches(ctx context.Context, w waker) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	snap, err := w.host.Snapshots.Open(ctx, w.ref)
	if err != nil {
		return err
	}
	defer snap.Close()
	flat, err := w.host.Snapshots.FlatMemory(ctx, snap, sandbox.NoProgress{}.Advance)
	if err != nil {
		return err
	}
	defer flat.Close()
	if err := evict(flat); err != nil {
		return err
	}
	for _, id := range append([]uuid.UUID{snap.ID()}, snap.Metadata().Layers...) {
		if err := evictFolder(filepath.Join(p.Store, id.String())); err != nil {
			return err
		}
	}
	if os.Geteuid() == 0 {
		unix.Sync()
		// A container's /proc may be read-only; the snapshot's own pages are gone in any case.
		_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}
	return nil
}

func evictFolder(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("dropping caches: %w", err)
		}
		defer f.Close()
		return evict(f)
	})
}

// evict drops a file's clean pages from the page cache.
func evict(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("dropping caches: writing back %s: %w", f.Name(), err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("dropping %s from the cache: %w", f.Name(), err)
	}
	return nil
}
