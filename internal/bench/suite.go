package bench

import (
	"context"

	"github.com/sporevm/spore/internal/sandbox"
)

// Env is what a suite measures with.
type Env struct {
	Host       *sandbox.Host
	Arch       string           // of the guests
	Accel      string           // auto, kvm or tcg
	Image      string           // what the machines are made of; it must have /bin/sh and the usual small tools
	Iterations int              // how often each measurement is taken, at least
	Progress   sandbox.Progress // hears which measurement is under way
}

// Suite is a set of measurements that belong together.
type Suite struct {
	Name  string
	Short string // one line
	Run   func(ctx context.Context, e Env) (*Report, error)
}

// Suites returns all suites there are.
func Suites() []Suite {
	return []Suite{
		{Name: "engine", Short: "create, wake and pause machines, against bare QEMU in the same run", Run: Engine},
		{Name: "data", Short: "read, copy, mount and compare snapshots at rest, against cat, cp and the kernel in the same run; wake them from afar", Run: Data},
		{Name: "service", Short: "sandboxes of a daemon, through its API, against the engine and bare QEMU in the same run", Run: Service},
	}
}
