package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/sandbox"
)

// machineFlags say what machine to build.
type machineFlags struct {
	vcpu         int
	memory, disk size
	accel, net   string
	engine       string
	version      string // of the engine; empty: its choice
	kernel       string
	reach        reachFlags
}

// reachFlags say what a machine with a tap interface may reach.
type reachFlags struct{ allow, deny []string }

func (r *reachFlags) register(f *pflag.FlagSet) {
	f.StringSliceVar(&r.allow, "allow-net", nil, "with --net tap: `CIDR` that may be reached, and nothing else; beside --deny-net: an exception from it; may be repeated")
	f.StringSliceVar(&r.deny, "deny-net", nil, "with --net tap: `CIDR` that may not be reached, unless --allow-net has it; may be repeated")
}

func (r *reachFlags) policy() (network.Policy, error) {
	p, err := network.ParsePolicy(r.allow, r.deny)
	if err != nil {
		return p, usageErrorf("%v", err)
	}
	return p, nil
}

func (m *machineFlags) register(f *pflag.FlagSet) {
	m.registerSizes(f)
	m.registerEngine(f)
	f.StringVar(&m.accel, "accel", "auto", "what runs the guest: auto, kvm or tcg (software emulation)")
	f.StringVar(&m.net, "net", "none", "network: none, user (outgoing only, needs no privilege), or tap (a network namespace of its own; needs root)")
	m.reach.register(f)
	f.StringVar(&m.kernel, "kernel", "", "guest kernel: a path, or a version below HOST_KERNELS_DIR (default the newest there)")
}

// registerEngine adds the choice of what runs machines.
func (m *machineFlags) registerEngine(f *pflag.FlagSet) {
	f.StringVar(&m.engine, "engine", engineQEMU, "what runs the machine: qemu, or firecracker (takes KVM, and root for its disk)")
}

// registerSizes adds the flags that E2B's tools have too, with its defaults.
func (m *machineFlags) registerSizes(f *pflag.FlagSet) {
	m.memory, m.disk = 512<<20, 1000<<20
	f.IntVar(&m.vcpu, "vcpu", 1, "virtual CPUs")
	f.Var(&m.memory, "memory", "memory in MiB, or with a suffix: 512M, 2G")
	f.Var(&m.disk, "disk", "size of the disk in MiB, or with a suffix: 1000M, 8G")
}

// spec starts the description of a machine.
func (m *machineFlags) spec(arch string) sandbox.CreateSpec {
	return sandbox.CreateSpec{
		Arch: arch, CPUs: m.vcpu, MemoryBytes: int64(m.memory), DiskBytes: int64(m.disk), Kernel: m.kernel, Accel: m.accel, Net: m.net,
		Engine: m.engine, EngineVersion: m.version,
	}
}

// steps are the recipe flags, all writing to one list: their order across flags is the order of the steps.
type steps struct{ list []sandbox.Step }

func (s *steps) register(f *pflag.FlagSet) {
	f.Var(&stepFlag{s, sandbox.StepRun, "COMMAND"}, "run", "step: run a command line in the guest; steps may be repeated and run in the order given")
	f.Var(&stepFlag{s, sandbox.StepCopy, "SRC:DST"}, "copy", "step: copy a file or folder of this host into the guest")
	f.Var(&stepFlag{s, sandbox.StepEnv, "NAME=VALUE"}, "env", "step: set an environment variable, from here on and in the snapshot")
	f.Var(&stepFlag{s, sandbox.StepWorkdir, "PATH"}, "workdir", "step: set the working directory, from here on and in the snapshot")
	f.Var(&stepFlag{s, sandbox.StepUser, "USER"}, "user", "step: set the user (name or number), from here on and in the snapshot")
}

// stepFlag is one of the recipe flags.
type stepFlag struct {
	to         *steps
	kind, form string
}

// Set implements pflag.Value.
func (s *stepFlag) Set(text string) error {
	args := []string{text}
	switch s.kind {
	case sandbox.StepCopy:
		src, dst, ok := strings.Cut(text, ":")
		if !ok || src == "" || dst == "" {
			return fmt.Errorf("%q is not of the form %s", text, s.form)
		}
		args = []string{src, dst}
	case sandbox.StepEnv:
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q is not of the form %s", text, s.form)
		}
		args = []string{name, value}
	default:
		if text == "" {
			return fmt.Errorf("it is empty")
		}
	}
	s.to.list = append(s.to.list, sandbox.Step{Kind: s.kind, Args: args})
	return nil
}

// String implements pflag.Value.
func (s *stepFlag) String() string { return "" }

// Type implements pflag.Value.
func (s *stepFlag) Type() string { return s.form }

// parseLabels reads --label values.
func parseLabels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(list))
	for _, l := range list {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" {
			return nil, usageErrorf("--label %q is not of the form NAME=VALUE", l)
		}
		labels[name] = value
	}
	return labels, nil
}
