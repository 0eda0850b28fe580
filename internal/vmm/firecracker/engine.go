// Package firecracker runs machines on a stock Firecracker, from 1.10 on. It needs KVM.
//
// A request goes through the files in this order: engine.go (what to run), binary.go and version.go (which binary, and what it can do), home.go (what the
// process is handed), jail.go and cell.go (its jail, if it gets one), machine.go (a running machine), boot.go and load.go (how it comes to run), state.go (how it is
// frozen). client.go and types.go are Firecracker's API.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// Engine starts machines on Firecracker.
type Engine struct {
	programs Programs
	jail     *jails              // nil: machines are in none
	readable func(pid int) error // whether a process's page map can be read

	mu    sync.Mutex
	known map[string]facts // by path, size and time of change
}

// New returns an engine. With a jail, which takes root, every machine runs in one of its own.
func New(p Programs, jail *Jail) *Engine {
	e := &Engine{programs: p, readable: pagemap.Readable, known: make(map[string]facts)}
	if jail != nil {
		e.jail = &jails{Jail: *jail}
	}
	return e
}

// Name is the engine's name in metadata.
const Name = "firecracker"

// Name implements [vmm.Engine].
func (e *Engine) Name() string { return Name }

// Needs implements [vmm.Particular].
func (e *Engine) Needs() vmm.Needs {
	n := vmm.Needs{DiskFile: true, ELFKernel: true, Served: true, User: os.Geteuid()}
	if e.jail != nil {
		n.NewUser, n.MayServe = e.jail.newUser, hostUserfaults().allowJailed
		return n
	}
	who := unprivileged()
	if who != nil {
		n.User = int(who.Uid)
	}
	n.MayServe = func() error { return hostUserfaults().allow(who) }
	return n
}

// Describe implements [vmm.Engine].
func (e *Engine) Describe(ctx context.Context, arch string, accel vmm.Accel) (vmm.Description, error) {
	facts, err := e.usable(ctx, arch, accel)
	if err != nil {
		return vmm.Description{}, err
	}
	d := vmm.Description{Engine: e.Name(), Version: facts.version.String(), MachineType: "state " + facts.format, CPUModel: "host", Accel: vmm.KVM}
	if d.CPUFlags, err = vmm.HostCPUFlags(); err != nil {
		return vmm.Description{}, err
	}
	return d, nil
}

// Installed is a Firecracker.
type Installed struct {
	Version, Path string
	Newer         bool // than any version that is known here
}

// Installed tells which Firecracker would run guests of an architecture. One that can't be used is told along with the error.
func (e *Engine) Installed(ctx context.Context, arch string) (Installed, error) {
	f, err := e.facts(ctx, arch)
	if err == nil {
		err = f.version.check()
	}
	return Installed{Version: f.version.String(), Path: f.path, Newer: !newest.atLeast(f.version)}, err
}

// Start implements [vmm.Engine].
func (e *Engine) Start(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	facts, err := e.usable(ctx, c.Arch, c.Accel)
	if err == nil {
		err = check(c)
	}
	if err != nil {
		if c.Disk != nil {
			c.Disk.Close()
		}
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	m, err := e.start(ctx, facts, c)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	return m, nil
}

// check refuses what no version of Firecracker can do.
func check(c vmm.Config) error {
	switch {
	case (c.Boot == nil) == (c.State == nil):
		return errors.New("exactly one of a kernel and a device state is needed")
	case c.Boot != nil && c.Uffd != "":
		return errors.New("a machine that boots has no memory to be served")
	case c.State != nil && c.Uffd == "" && c.Memory == nil:
		return errors.New("a machine that thaws needs its memory, or one who serves it")
	case c.Network != vmm.NetNone && c.Network != "" && c.Tap == nil:
		return fmt.Errorf("firecracker has no network of the kind %q: use none, or a tap device", c.Network)
	case c.CPUs > 32:
		return fmt.Errorf("%d virtual CPUs: firecracker can do 32", c.CPUs)
	case c.MemoryBytes%(1<<20) != 0:
		return fmt.Errorf("%d bytes of memory: firecracker takes whole MiB", c.MemoryBytes)
	}
	return nil
}

// usable returns the binary to use, and refuses what it can't do on this host.
func (e *Engine) usable(ctx context.Context, arch string, accel vmm.Accel) (facts, error) {
	switch {
	case accel == vmm.TCG:
		return facts{}, errors.New("firecracker has no software emulation: use --engine qemu, or --accel kvm")
	case arch != runtime.GOARCH:
		return facts{}, fmt.Errorf("firecracker runs guests of the host's architecture, %s, and not %s: use --engine qemu", runtime.GOARCH, arch)
	}
	f, err := e.facts(ctx, arch)
	if err == nil {
		err = f.version.check()
	}
	if err == nil && e.jail != nil {
		err = e.jail.allows(ctx, f)
	}
	return f, err
}

// facts returns what the binary for an architecture says of itself. A binary that is replaced is asked again.
func (e *Engine) facts(ctx context.Context, arch string) (facts, error) {
	path, err := e.programs.Find(arch)
	if err != nil {
		return facts{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return facts{}, fmt.Errorf("examining Firecracker: %w", err)
	}
	key := fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano())
	e.mu.Lock()
	defer e.mu.Unlock()
	if f, ok := e.known[key]; ok {
		return f, nil
	}
	f, err := ask(ctx, path)
	if err == nil {
		e.known[key] = f
	}
	return f, err
}
