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

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// A boot under emulation takes two to four seconds on an idle host; a busy one may need several times that.
const (
	bootTimeout  = 60 * time.Second
	bootAttempts = 3
)

// BootError says that a guest never came up.
type BootError struct {
	Attempts int
	Log      string // end of its console
	Err      error
}

func (e *BootError) Error() string {
	msg := fmt.Sprintf("the guest did not boot in %d attempts: %v", e.Attempts, e.Err)
	if e.Log != "" {
		msg += "\nend of its console:\n" + e.Log
	}
	return msg
}

func (e *BootError) Unwrap() error { return e.Err }

// boot starts a machine from nothing on the disk of a snapshot. meta is what snapshots of the machine will say, as far as it is known.
// Of spec it takes the kernel and what the machine may reach. A guest that hangs while booting is ended and tried again.
func (h *Host) boot(ctx context.Context, parent *snapshot.Snapshot, meta snapshot.Metadata, spec CreateSpec) (*Sandbox, error) {
	kernel, err := guest.FindKernel(h.KernelsDir, spec.Kernel, meta.Arch)
	if err != nil {
		return nil, err
	}
	kernelDigest, err := fileDigest(kernel.Path)
	if err != nil {
		return nil, err
	}
	initramfs, initramfsDigest, err := h.initramfs(kernel)
	if err != nil {
		return nil, err
	}
	meta.Kernel.Version, meta.Kernel.Digest = kernel.Version, kernelDigest
	meta.Initramfs = initramfsDigest
	boot := vmm.Boot{Kernel: kernel.Path, Initramfs: initramfs, Args: guest.KernelArgs("", false)}
	for attempt := 1; ; attempt++ {
		s, err := h.bootOnce(ctx, parent, meta, boot, spec.Policy)
		if err == nil {
			return s, nil
		}
		var failed *BootError
		if !errors.As(err, &failed) || ctx.Err() != nil {
			return nil, err
		}
		failed.Attempts = attempt
		if attempt == bootAttempts {
			return nil, err
		}
		h.Log.Warn("a boot failed and is tried again", "attempt", attempt, "error", failed.Err)
	}
}

func (h *Host) bootOnce(ctx context.Context, parent *snapshot.Snapshot, meta snapshot.Metadata, boot vmm.Boot, policy network.Policy) (_ *Sandbox, err error) {
	memory, err := emptyMemory(h.scratch(), meta.MemoryBytes)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{host: h, id: uuid.New(), memory: memory, meta: meta, parent: parent, policy: policy}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	config := vmm.Config{
		Arch: meta.Arch, CPUs: meta.VCPUs, MemoryBytes: meta.MemoryBytes,
		Accel: vmm.Accel(meta.Engine.Accel), Network: vmm.Network(meta.Net), Boot: &boot,
	}
	if err := s.start(ctx, config); err != nil {
		return nil, err
	}
	timed, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("no answer from its agent in %v", bootTimeout))
	defer cancel()
	if err := s.connect(timed); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &BootError{Log: s.Log(), Err: err}
	}
	return s, nil
}

// emptyMemory returns a file of size bytes without a name and without content, to be mapped privately: a boot is a resume from nothing, so that its first
// snapshot is a diff like any other.
func emptyMemory(dir string, size int64) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a memory file in %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, "memory"))
	// The VMM may be another user; it gets the file by descriptor only.
	if err := errors.Join(f.Chmod(0o666), f.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("making a memory file: %w", err), f.Close())
	}
	return f, nil
}

// BootFiles returns what a guest of an architecture boots from here: kernel, initramfs, and the arguments that the agent takes from the kernel's command line.
// Measurements boot with them by hand.
func (h *Host) BootFiles(ctx context.Context, arch, kernelSpec string) (kernel, initramfs, args string, err error) {
	k, err := guest.FindKernel(h.KernelsDir, kernelSpec, arch)
	if err != nil {
		return "", "", "", err
	}
	initramfs, _, err = h.initramfs(k)
	return k.Path, initramfs, guest.KernelArgs("", false), err
}
