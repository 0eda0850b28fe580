package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// wantedModules are what a guest may need to reach its host or to run what images hold. Those that a kernel has built in, or does not have, are
// passed over; dependencies come along by themselves.
var wantedModules = []string{
	"virtio_mmio", "virtio_pci", // the buses
	"virtio_blk", "virtio_console", "virtio_balloon", "virtio_net", "virtio-rng", "vmw_vsock_virtio_transport",
	"overlay", "fuse",
}

const (
	maxModule = 16 << 20 // bytes; Debian's largest is 10 MiB
	maxAgent  = 64 << 20
)

// Initramfs writes the initial file system of a guest: the agent as its first process, the modules of k that it may need with a list that gives their
// order, and the two devices that a process expects before /dev is mounted. The same kernel and agent always make the same bytes.
//
// It is not compressed: under emulation a guest unpacks no format as fast as the host hands over the plain bytes.
func Initramfs(w io.Writer, k Kernel, agent []byte) error {
	if err := checkAgent(agent, k.Arch); err != nil {
		return err
	}
	modules, err := findModules(k.ModulesDir, wantedModules)
	if err != nil {
		return err
	}
	c := &cpioWriter{w: w}
	entries := []cpioEntry{
		{name: "dev", mode: cpioDir | 0o755},
		{name: "dev/console", mode: cpioChar | 0o600, major: 5, minor: 1},
		{name: "dev/null", mode: cpioChar | 0o666, major: 1, minor: 3},
		{name: "init", mode: cpioFile | 0o755, data: agent},
	}
	for _, e := range entries {
		if err := c.add(e); err != nil {
			return fmt.Errorf("writing %s to the initramfs: %w", e.name, err)
		}
	}
	if len(modules) > 0 {
		if err := addModules(c, modules); err != nil {
			return fmt.Errorf("writing modules to the initramfs: %w", err)
		}
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("writing the initramfs: %w", err)
	}
	return nil
}

func addModules(c *cpioWriter, modules []module) error {
	if err := c.add(cpioEntry{name: "modules", mode: cpioDir | 0o755}); err != nil {
		return err
	}
	var list bytes.Buffer
	for _, m := range modules {
		list.WriteString(m.file)
		for _, alias := range m.devices {
			list.WriteByte(' ')
			list.WriteString(alias)
		}
		list.WriteByte('\n')
		if err := c.add(cpioEntry{name: "modules/" + m.file, mode: cpioFile | 0o644, data: m.data}); err != nil {
			return err
		}
	}
	return c.add(cpioEntry{name: "modules.list", mode: cpioFile | 0o644, data: list.Bytes()})
}

// checkAgent refuses what can't run as the first process of such a guest: that would show only as a kernel panic.
func checkAgent(agent []byte, arch string) error {
	const machineAt = 18 // e_machine of an ELF header
	want := map[string]uint16{"amd64": 62, "arm64": 183}[arch]
	switch {
	case len(agent) > maxAgent:
		return fmt.Errorf("the agent has %d bytes: at most %d are allowed", len(agent), maxAgent)
	case len(agent) < 64 || !bytes.HasPrefix(agent, []byte("\x7fELF")):
		return errors.New("the agent is not an executable")
	case uint16(agent[machineAt])|uint16(agent[machineAt+1])<<8 != want:
		return fmt.Errorf("the agent is not an executable for %s", arch)
	}
	return nil
}

// module is a kernel module as the guest will load it.
type module struct {
	file    string   // base name
	data    []byte   // the module itself
	devices []string // aliases of the devices it drives; empty: always loaded
	needs   []string // names of the modules it depends on
}

// findModules reads the wanted modules that dir has, and what they depend on, in an order in which they can be loaded. An empty dir has none.
func findModules(dir string, wanted []string) ([]module, error) {
	if dir == "" {
		return nil, nil
	}
	f := moduleFinder{dir: dir, state: make(map[string]bool)}
	for _, name := range wanted {
		if err := f.visit(name, false); err != nil {
			return nil, fmt.Errorf("collecting kernel modules: %w", err)
		}
	}
	f.demandDeps()
	return f.found, nil
}

type moduleFinder struct {
	dir   string
	found []module
	state map[string]bool // by plain name: false while its dependencies are visited, true when done
}

func (f *moduleFinder) visit(name string, must bool) error {
	key := plainName(name)
	if done, seen := f.state[key]; seen {
		if !done {
			return fmt.Errorf("module %s depends on itself", name)
		}
		return nil
	}
	m, err := readModule(f.dir, name)
	if errors.Is(err, os.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return err
	}
	f.state[key] = false
	for _, need := range m.needs {
		if err := f.visit(need, true); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	f.state[key] = true
	f.found = append(f.found, m)
	return nil
}

// demandDeps gives a module that is there only for others the devices of those others: net_failover is needed where virtio_net is, and only there.
func (f *moduleFinder) demandDeps() {
	users := make(map[string][]module)
	wanted := make(map[string]bool)
	for _, name := range wantedModules {
		wanted[plainName(name)] = true
	}
	for i := len(f.found) - 1; i >= 0; i-- { // users come after what they use
		m := &f.found[i]
		key := plainName(trimModule(m.file))
		if !wanted[key] && len(m.devices) == 0 {
			for _, u := range users[key] {
				if len(u.devices) == 0 {
					m.devices = nil
					break
				}
				m.devices = append(m.devices, u.devices...)
			}
		}
		for _, need := range m.needs {
			users[plainName(need)] = append(users[plainName(need)], *m)
		}
	}
}

// readModule reads the module called name; the file may spell it with dashes or underscores.
func readModule(dir, name string) (module, error) {
	for _, spelled := range spellings(name) {
		path := filepath.Join(dir, spelled+".ko")
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return module{}, fmt.Errorf("looking at module %s: %w", name, err)
		}
		if st.Size() > maxModule {
			return module{}, fmt.Errorf("module %s has %d bytes: at most %d are allowed", name, st.Size(), maxModule)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return module{}, fmt.Errorf("reading module %s: %w", name, err)
		}
		m := module{file: spelled + ".ko", data: data}
		if m.needs, m.devices, err = moduleInfo(data); err != nil {
			return module{}, fmt.Errorf("reading module %s: %w", name, err)
		}
		return m, nil
	}
	return module{}, fmt.Errorf("module %s is not in %s: %w", name, dir, os.ErrNotExist)
}
