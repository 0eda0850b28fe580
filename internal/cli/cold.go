package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// dropCaches makes the host forget what it has cached of a snapshot: in memory its own files, those of the layers it stands on, and its flat memory; of one
// from afar what was fetched. This needs no privilege. Root drops everything else too.
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
	if w.host.Snapshots.IsFar() {
		dropFrames(snap, filepath.Join(p.Cache, "frames"))
		dropPages()
		return nil
	}
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
	dropPages()
	return nil
}

// dropFrames forgets what was fetched of a snapshot from afar.
func dropFrames(snap *snapshot.Snapshot, dir string) {
	cache := framecache.Open(dir, 0)
	for _, image := range []*block.Reader{snap.Disk(), snap.Memory()} {
		if image == nil {
			continue
		}
		for _, layer := range image.Header().Layers {
			for _, frame := range layer.Frames {
				cache.Drop(frame.Digest)
			}
		}
	}
}

// dropPages has root's kernel forget everything that it has cached of files: of the VMM's program, for one.
func dropPages() {
	if os.Geteuid() == 0 {
		unix.Sync()
		// A container's /proc may be read-only; the snapshot's own pages are gone in any case.
		_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}
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
