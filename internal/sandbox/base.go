package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store/flock"
)

// derived is the namespace of the ids of snapshots that follow from their inputs: one input, one id, so that work is done once.
var derived = uuid.MustParse("5b0bd5a4-2a8d-5d0c-9a4e-6f3b5d1e7c21")

// imageDisk returns the disk-only snapshot of an image, making it unless it is there.
func (h *Host) imageDisk(ctx context.Context, spec CreateSpec, p Progress) (*snapshot.Snapshot, error) {
	p.Phase("pull")
	img, err := h.Images.Resolve(ctx, spec.Image, image.Platform{OS: "linux", Arch: spec.Arch})
	if err != nil {
		return nil, err
	}
	id := uuid.NewSHA1(derived, fmt.Appendf(nil, "image 1\n%s\n%s\n%d\n", img.Digest, img.Platform.Arch, spec.DiskBytes))
	return h.once(ctx, id, func() (*snapshot.Snapshot, error) {
		file, err := h.imageFile(ctx, img, spec.DiskBytes, p)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return h.importDisk(ctx, id, file, img, spec, p)
	})
}

// once returns the snapshot with a derived id, having it made by make if it isn't there. Of several processes that want the same one only one makes it.
func (h *Host) once(ctx context.Context, id uuid.UUID, make func() (*snapshot.Snapshot, error)) (*snapshot.Snapshot, error) {
	var missing *snapshot.NotFoundError
	if snap, err := h.Snapshots.OpenID(ctx, id); !errors.As(err, &missing) {
		return snap, err
	}
	unlock, err := lockFile(ctx, filepath.Join(h.locks(), id.String()))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if snap, err := h.Snapshots.OpenID(ctx, id); !errors.As(err, &missing) {
		return snap, err
	}
	return make()
}

// imageFile returns the image's file system, grown to size, as a file without a name.
func (h *Host) imageFile(ctx context.Context, img *image.Image, size int64, p Progress) (*os.File, error) {
	path, err := h.Images.Ext4(ctx, img, imageProgress(p))
	if err != nil {
		return nil, err
	}
	dir, err := newWorkDir(h.scratch(), "grow-")
	if err != nil {
		return nil, err
	}
	defer dir.remove()
	grown := filepath.Join(dir.path, "rootfs.ext4")
	if err := image.Grow(ctx, path, grown, size); err != nil {
		return nil, err
	}
	return os.Open(grown)
}

// imageProgress passes on what the image builder tells.
func imageProgress(p Progress) image.Progress {
	var current image.Phase
	return func(phase image.Phase, done, total int64) {
		if phase != current {
			current = phase
			p.Phase(string(phase))
		}
		p.Advance(done, total)
	}
}

// importDisk stores a file system as the base layer of all machines of an image.
func (h *Host) importDisk(ctx context.Context, id uuid.UUID, file *os.File, img *image.Image, spec CreateSpec, p Progress) (*snapshot.Snapshot, error) {
	p.Phase("import")
	draft, err := h.Snapshots.NewDraft(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	defer draft.Abort()
	w, err := draft.Disk(spec.DiskBytes)
	if err != nil {
		return nil, err
	}
	data, err := dataBlocks(file, spec.DiskBytes)
	if err != nil {
		return nil, err
	}
	if err := saveBlocks(ctx, w, data, file, nil, p.Advance); err != nil {
		return nil, fmt.Errorf("storing the file system of %s: %w", img.Ref, err)
	}
	return draft.Commit(ctx, imageMetadata(img, spec.DiskBytes))
}

func imageMetadata(img *image.Image, size int64) snapshot.Metadata {
	var m snapshot.Metadata
	m.Kind, m.Created = snapshot.KindImage, time.Now().UTC()
	m.Arch, m.DiskBytes = img.Platform.Arch, size
	m.Image.Ref, m.Image.Digest, m.Image.Packages = img.Ref, img.Digest, img.Packages
	m.Entrypoint, m.Cmd = img.Config.Entrypoint, img.Config.Cmd
	m.Context = snapshot.Context{User: img.Config.User, Workdir: img.Config.WorkingDir, Env: environment(img.Config.Env)}
	return m
}

// dataBlocks returns the blocks of a sparse file that are not holes.
func dataBlocks(f *os.File, size int64) (*block.Set, error) {
	const unit = block.DefaultBlockSize
	set := new(block.Set)
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return nil, fmt.Errorf("finding the data of %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("finding the holes of %s: %w", f.Name(), err)
		}
		end = min(end, size)
		first := start / unit
		set.Add(first, (end+unit-1)/unit-first)
		off = end
	}
	return set, nil
}

// lockFile waits for the lock on a file, which is there only while somebody holds or wants it.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("opening a lock: %w", err)
		}
		current := false
		if err = flock.Lock(ctx, f, flock.Exclusive); err == nil {
			current, err = flock.Current(f, path)
		}
		if current {
			return func() {
				os.Remove(path) // while it is held: those who wait see that, and start again
				f.Close()
			}, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}
