// Package sandbox is the life of a machine: it is created from an image, frozen into a snapshot, woken from one with an identity of its own, and ended.
//
// A creation goes through base.go (image → disk), steps.go, boot.go, start.go and pause.go; a wake through resume.go and identity.go.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// HostOptions are what sandboxes of one host share.
type HostOptions struct {
	Snapshots *snapshot.Repo
	Images    *image.Builder
	Engine    vmm.Engine // runs machines unless something else is asked for
	// Others finds engines by the name and the version that a snapshot was taken under; nil: there are none. A version that is not to be had is no error.
	Others     func(name, version string) (vmm.Engine, error)
	Networks   *network.Pool // for machines with a tap interface; nil: there are none
	KernelsDir string        // holds {version}/{arch}/vmlinux.bin
	CacheDir   string        // may be deleted at any time between runs
	RunDir     string        // holds a folder for each live machine; short path
	Daemon     bool          // its machines are those of a daemon, which lists them itself
	Log        *slog.Logger

	// Pages serves memory from afar to engines that handle page faults themselves. Nil: they get it as the others do.
	Pages PageServer

	// Abandoned is shown each folder of [Host.WorkDir] that a dead process has left, before it is removed: it ends what the files there tell of. Nil: nothing.
	Abandoned func(dir string) error

	// LazyMemory serves memory page by page: that of snapshots from afar, and that of new ones to see what they touch. It may be nil, and may fail: memory
	// is laid out as a file then, and nobody knows what is touched. The error of a host that can't do it wraps errors.ErrUnsupported.
	LazyMemory func(context.Context, *snapshot.Snapshot, LazyOptions) (LazyMemory, error)
}

// Host makes and wakes sandboxes.
type Host struct {
	HostOptions
}

// NewHost returns a host and removes what dead processes have left in its run folder and its cache.
func NewHost(o HostOptions) (*Host, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{HostOptions: o}
	for _, dir := range []string{o.CacheDir, o.RunDir, h.scratch(), h.locks()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a working folder: %w", err)
		}
	}
	for _, dir := range []string{o.RunDir, h.scratch()} {
		if err := sweep(dir, o.Log, o.Abandoned); err != nil {
			return nil, fmt.Errorf("cleaning up after earlier runs: %w", err)
		}
	}
	if err := sweepLocks(h.locks()); err != nil {
		return nil, fmt.Errorf("cleaning up after earlier runs: %w", err)
	}
	return h, nil
}

// scratch is the folder for temporary files: overlays and the memory of booting machines, which have no names, and folders of work in progress.
func (h *Host) scratch() string { return filepath.Join(h.CacheDir, "scratch") }

// WorkDir makes a folder for temporary files. It is removed by remove or, should the process die before, by a later [NewHost].
func (h *Host) WorkDir(prefix string) (path string, remove func() error, err error) {
	dir, err := newWorkDir(h.scratch(), prefix)
	if err != nil {
		return "", nil, err
	}
	return dir.path, dir.remove, nil
}

// locks is the folder of the locks by which processes take turns.
func (h *Host) locks() string { return filepath.Join(h.CacheDir, "locks") }

// Progress is told how far long work is. Implementations must be safe for concurrent use.
type Progress interface {
	// Phase begins the named part of the work.
	Phase(name string)
	// Advance says that done of total units (mostly bytes) of the current phase are done; a total of 0 is unknown.
	Advance(done, total int64)
}

// NoProgress ignores all that it is told.
type NoProgress struct{}

// Phase implements [Progress].
func (NoProgress) Phase(string) {}

// Advance implements [Progress].
func (NoProgress) Advance(int64, int64) {}
