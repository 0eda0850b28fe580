package cli

import (
	"fmt"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// The names of the engines, as in metadata.
const (
	engineQEMU        = "qemu"
	engineFirecracker = "firecracker"
)

// otherEngine returns an engine other than QEMU. A version that is not installed is no error here: a snapshot that asks for it says so in its own words.
func (a *app) otherEngine(name, version string) (vmm.Engine, error) {
	if name != engineFirecracker {
		return nil, usageErrorf("unknown engine %q: choose %s or %s", name, engineQEMU, engineFirecracker)
	}
	programs, err := a.firecrackers()
	if err != nil {
		return nil, err
	}
	arch, err := a.arch()
	if err != nil {
		return nil, fmt.Errorf("choosing an engine: %w", err)
	}
	if programs.Has(version, arch) {
		programs.Version = version
	}
	a.enginesMu.Lock()
	defer a.enginesMu.Unlock()
	if e, ok := a.engines[programs.Version]; ok {
		return e, nil
	}
	jail, err := a.jailed()
	if err != nil {
		return nil, err
	}
	if a.engines == nil {
		a.engines = map[string]vmm.Engine{}
	}
	a.engines[programs.Version] = firecracker.New(programs, jail)
	return a.engines[programs.Version], nil
}

// hasFirecracker refuses a version that was asked for and is not installed.
func (a *app) hasFirecracker(m machineFlags) error {
	if m.engine != engineFirecracker || m.version == "" {
		return nil
	}
	programs, err := a.firecrackers()
	if err != nil {
		return err
	}
	arch, err := a.arch()
	if err != nil {
		return err
	}
	programs.Version = m.version
	_, err = programs.Find(arch)
	return err
}

// firecrackers says where Firecracker is looked for.
func (a *app) firecrackers() (firecracker.Programs, error) {
	p, err := a.paths()
	return firecracker.Programs{Binary: a.Getenv("SPORE_FIRECRACKER"), VersionsDir: p.Firecrackers}, err
}
