// Package qemu runs machines on a stock QEMU: hardware virtualization where KVM works, software emulation everywhere else, without root.
//
// A request goes through the files in this order: engine.go (what to run), probe.go and facts.go (what this host can do), args.go (QEMU's command line),
// launch.go (the process and its cage), qmp.go (its control channel), machine.go (a running machine), dirty.go (which memory it has written).
package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
)

// Engine starts machines on QEMU.
type Engine struct {
	cacheDir string

	mu    sync.Mutex
	known map[string]facts // by binary
}

// New returns an engine. Results of slow probes are kept in cacheDir across runs.
func New(cacheDir string) *Engine {
	return &Engine{cacheDir: cacheDir, known: make(map[string]facts)}
}

// Name implements [vmm.Engine].
func (e *Engine) Name() string { return "qemu" }

// Describe implements [vmm.Engine].
func (e *Engine) Describe(ctx context.Context, arch string, accel vmm.Accel) (vmm.Description, error) {
	hw, err := hardwareFor(arch)
	if err != nil {
		return vmm.Description{}, err
	}
	facts, err := e.facts(ctx, hw.binary)
	if err != nil {
		return vmm.Description{}, err
	}
	if accel, err = e.choose(ctx, arch, accel); err != nil {
		return vmm.Description{}, err
	}
	d := vmm.Description{Engine: e.Name(), Version: facts.Version, MachineType: hw.machine, CPUModel: hw.cpuTCG, Accel: accel}
	if arch == runtime.GOARCH {
		d.TSCKHz = facts.TSCKHz
	}
	if accel == vmm.KVM {
		d.CPUModel = "host"
		if d.CPUFlags, err = hostCPUFlags(); err != nil {
			return vmm.Description{}, err
		}
	}
	return d, nil
}

// Start implements [vmm.Engine].
func (e *Engine) Start(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	hw, err := hardwareFor(c.Arch)
	if err != nil {
		return nil, err
	}
	if (c.Boot == nil) == (c.State == nil) {
		return nil, fmt.Errorf("starting %s: exactly one of a kernel and a device state is needed", c.Name)
	}
	if (c.Network == vmm.NetTap) != (c.Tap != nil) {
		return nil, fmt.Errorf("starting %s: a tap interface goes with a network of that kind, and only with that", c.Name)
	}
	facts, err := e.facts(ctx, hw.binary)
	if err != nil {
		return nil, err
	}
	binary, err := exec.LookPath(hw.binary)
	if err != nil {
		return nil, notInstalled(hw.binary)
	}
	if c.Accel, err = e.choose(ctx, c.Arch, c.Accel); err != nil {
		return nil, err
	}
	var tsc int64
	if c.Arch == runtime.GOARCH {
		tsc = facts.TSCKHz
	}
	m, err := start(ctx, binary, c, hw, tsc)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	return m, nil
}

func notInstalled(binary string) error {
	return fmt.Errorf("%s is not installed: install Debian's qemu-system-x86 or qemu-system-arm, or your distribution's equivalent", binary)
}
