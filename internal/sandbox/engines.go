package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// engine returns the engine of a name, which is the host's own unless it says otherwise. Version is the one to be had if there is a choice.
func (h *Host) engine(name, version string) (vmm.Engine, error) {
	switch {
	case name == "" || name == h.Engine.Name():
		return h.Engine, nil
	case h.Others == nil:
		return nil, fmt.Errorf("there is no engine %q here: only %s", name, h.Engine.Name())
	}
	return h.Others(name, version)
}

// canRun refuses what no engine here can run, before any work is done for it.
func (h *Host) canRun(ctx context.Context, spec CreateSpec) error {
	engine, err := h.engine(spec.Engine, spec.EngineVersion)
	if err != nil || spec.Arch == "" { // that of a snapshot yet to be opened
		return err
	}
	accel, err := vmm.ParseAccel(spec.Accel)
	if err != nil {
		return err
	}
	_, err = engine.Describe(ctx, spec.Arch, accel)
	return err
}

// kernelFor returns the path of a kernel as an engine loads it. What has to be unpacked for that is kept in the cache.
func (h *Host) kernelFor(e vmm.Engine, k guest.Kernel, digest block.Digest) (string, error) {
	if !vmm.NeedsOf(e).ELFKernel || k.Arch != "amd64" {
		return k.Path, nil
	}
	dir := filepath.Join(h.CacheDir, "kernels")
	file := filepath.Join(dir, strings.TrimPrefix(digest.String(), "blake3:"))
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache of kernels: %w", err)
	}
	work, err := newWorkDir(h.scratch(), "kernel-")
	if err != nil {
		return "", err
	}
	defer work.remove()
	tmp, err := os.OpenFile(filepath.Join(work.path, "vmlinux"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	packed, err := guest.UnpackKernel(tmp, k.Path)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil || !packed {
		return k.Path, err
	}
	return file, os.Rename(tmp.Name(), file)
}
