// Package sandboxtest makes what tests above the sandbox need: a host with a store of its own, and a machine of a small image in it.
package sandboxtest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/image/imagetest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// Lab is a store with one template, and what is needed to make machines of it. Making one takes a boot of several seconds.
type Lab struct {
	Dir      string
	Template uuid.UUID
}

// Name is the template's.
const Name = "lab"

// New makes a lab in a new folder, which Close removes. Its template is a busybox in which a shell counts into /count.
func New(ctx context.Context) (_ *Lab, err error) {
	dir, err := os.MkdirTemp("", "spore-lab")
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := imagetest.Busybox(filepath.Join(dir, "image")); err != nil {
		return nil, err
	}
	h, err := l.Host(filepath.Join(dir, "run"), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	snap, err := h.Create(ctx, sandbox.CreateSpec{
		Image: "dir:" + filepath.Join(dir, "image"), Arch: "amd64", CPUs: 1, MemoryBytes: 160 << 20, DiskBytes: 48 << 20, Accel: "tcg", Names: []string{Name},
		StartCommand: "cd /; n=0; while true; do n=$((n+1)); echo $n > /count; sleep 0.2; done", ReadyCommand: "test -s /count",
	}, sandbox.NoProgress{})
	if err != nil {
		return nil, err
	}
	l.Template = snap.ID()
	return l, snap.Close()
}

// Close removes the lab.
func (l *Lab) Close() error { return os.RemoveAll(l.Dir) }

// Host returns a host on the lab's store.
func (l *Lab) Host(runDir string, log *slog.Logger) (*sandbox.Host, error) {
	st, err := store.OpenDir(filepath.Join(l.Dir, "store"))
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(l.Dir, "cache")
	repo, err := snapshot.Open(st, cache)
	if err != nil {
		return nil, err
	}
	images, err := image.New(filepath.Join(cache, "images"), image.Options{})
	if err != nil {
		return nil, err
	}
	return sandbox.NewHost(sandbox.HostOptions{
		Snapshots: repo, Images: images, Engine: qemu.New(cache), KernelsDir: guest.KernelsDir(os.Getenv), CacheDir: cache, RunDir: runDir, Log: log,
	})
}
