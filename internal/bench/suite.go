package bench

import (
	"context"
	"fmt"
	"time"

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

	Pager   func(store string) []string // the command that serves the memory of a store's snapshots
	Process []string                    // the command whose body is Process
}

// Suite is a set of measurements that belong together.
type Suite struct {
	Name  string
	Short string // one line
	Run   func(ctx context.Context, e Env) (*Report, error)
}

// part is what a suite measures at a time.
type part struct {
	name string
	run  func(context.Context) error
}

// measure runs the parts of a suite, one after the other, each for no longer than limit.
func (e Env) measure(ctx context.Context, limit time.Duration, parts []part) error {
	for _, p := range parts {
		e.Progress.Phase(p.name)
		timed, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
		err := p.run(timed)
		cancel()
		if err != nil {
			return fmt.Errorf("measuring %s: %w", p.name, err)
		}
	}
	return nil
}

// Suites returns all suites there are.
func Suites() []Suite {
	return []Suite{
		{Name: "engine", Short: "create, wake and pause machines, against bare QEMU in the same run", Run: Engine},
		{Name: "data", Short: "read, copy, mount and compare snapshots at rest, against cat, cp and the kernel in the same run; wake them from afar", Run: Data},
		{Name: "service", Short: "sandboxes of a daemon, through its API, against the engine and bare QEMU in the same run", Run: Service},
		{Name: "pager", Short: "serve a machine's memory page by page, against a bare userfaultfd loop in the same run", Run: Pager},
	}
}
