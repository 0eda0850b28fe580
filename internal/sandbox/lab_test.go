package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/image/imagetest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// lab is what the tests share, because a boot takes seconds: an image, and a machine that was created from it. Tests add children but change nothing.
var lab laboratory

type laboratory struct {
	once     sync.Once
	err      error
	dir      string
	template uuid.UUID
}

func (l *laboratory) store() string { return filepath.Join(l.dir, "store") }
func (l *laboratory) cache() string { return filepath.Join(l.dir, "cache") }
func (l *laboratory) image() string { return "dir:" + filepath.Join(l.dir, "image") }
func (l *laboratory) probe() string { return filepath.Join(l.dir, "image", "probe") }

func (l *laboratory) remove() error {
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(l.dir)
}

// need returns the shared things, making them for the first test that asks.
func (l *laboratory) need(t *testing.T) {
	t.Helper()
	l.once.Do(func() {
		if l.dir, l.err = os.MkdirTemp("", "spore-lab"); l.err == nil {
			l.err = l.build(t.Context())
		}
	})
	if l.err != nil {
		t.Fatalf("preparing the tests: %v", l.err)
	}
}

// marker begins a file of the image that nothing reads before a test does.
const marker = "spore-test-marker-of-a-file-that-is-read-late"

func (l *laboratory) build(ctx context.Context) error {
	if err := buildImage(filepath.Join(l.dir, "image")); err != nil {
		return err
	}
	h, err := openHost(l.store(), l.cache(), filepath.Join(l.dir, "run"), nil, slog.DiscardHandler)
	if err != nil {
		return err
	}
	spec := small()
	spec.StartCommand, spec.ReadyCommand = "cd /; exec /probe live", "test -s /count"
	snap, err := h.Create(ctx, spec, NoProgress{})
	if err != nil {
		return err
	}
	l.template = snap.ID()
	return snap.Close()
}

// buildImage makes an image of busybox and the probe.
func buildImage(root string) error {
	if err := imagetest.Busybox(root); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "late"), []byte(marker+strings.Repeat("x", 8192)), 0o644); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the probe: %w\n%s", err, out)
	}
	return os.Chmod(root, 0o755)
}

// small describes a machine of the lab's image.
func small() CreateSpec {
	return CreateSpec{Image: lab.image(), Arch: "amd64", CPUs: 1, MemoryBytes: 160 << 20, DiskBytes: 48 << 20, Accel: "tcg"}
}

// openHost opens a store and makes a host for it. A nil engine is QEMU.
func openHost(storeDir, cache, run string, engine vmm.Engine, log slog.Handler) (*Host, error) {
	st, err := store.OpenDir(storeDir)
	if err != nil {
		return nil, err
	}
	return hostOn(st, cache, run, engine, log)
}

func hostOn(st store.Store, cache, run string, engine vmm.Engine, log slog.Handler) (*Host, error) {
	repo, err := snapshot.Open(st, cache)
	if err != nil {
		return nil, err
	}
	images, err := image.New(filepath.Join(cache, "images"), image.Options{})
	if err != nil {
		return nil, err
	}
	if engine == nil {
		engine = qemu.New(cache)
	}
	return NewHost(HostOptions{
		Snapshots: repo, Images: images, Engine: engine, KernelsDir: guest.KernelsDir(os.Getenv), CacheDir: cache, RunDir: run, Log: slog.New(log),
	})
}
