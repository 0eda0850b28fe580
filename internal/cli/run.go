package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// runFlags are what run takes.
type runFlags struct {
	machine machineFlags
	command commandFlags
	owner   ownerFlags
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run IMAGE|SNAPSHOT [-- COMMAND [ARGUMENT...]]",
		Short: "Run a command in a fresh machine",
		Long: `Wakes a snapshot, runs a command in it with this terminal's input and output, and lets the machine go. The exit code is the command's.

An image is booted once and frozen under a name made of its digest and the machine's flags; every run after that wakes the frozen machine. Without a command
the image's own entrypoint and command run. Flags for the machine apply to images only: a snapshot wakes as it was frozen. What a
machine may reach is not frozen: --allow-net and --deny-net hold for this run, and for snapshots too.

Where a daemon runs on this host that has the snapshot, the machine is a sandbox of the daemon's for as long as the command takes: it may come from a pool, counts
where the daemon counts, and is listed by spore ps. With --detach it stays: the command is left running in it, and the sandbox's id is printed.

Input that is not a terminal is always passed on; a terminal is with -i or -t.`,
		Example: `  spore run apt:bookworm/python3-minimal -- python3 -c 'print(6*7)'
  echo hello | spore run py -- tr a-z A-Z
  spore run -it debian:12 -- bash
  spore run -d --timeout 2h py -- python3 -m http.server 8000`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf("run takes an image or a snapshot")
			}
			return nil
		},
		ValidArgsFunction: a.completeSnapshots,
		PreRun:            func(*cobra.Command, []string) { a.running = true },
		RunE:              func(cmd *cobra.Command, args []string) error { return a.run(cmd.Context(), args[0], args[1:], f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.SetInterspersed(false) // what follows the image is the command's
	f.command.register(flags)
	f.machine.register(flags)
	a.jailFlags(flags)
	f.owner.register(flags)
	a.daemonFlags(flags)
	a.trustFlags(flags)
	return c
}

func (a *app) run(ctx context.Context, ref string, args []string, f runFlags) (err error) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	arch, err := a.arch()
	if err != nil {
		return err
	}
	spec := f.machine.spec(arch)
	spec.Image = ref
	if err := spec.Check(); err != nil {
		return usageErrorf("%v", err)
	}
	policy, err := f.machine.reach.policy()
	if err != nil {
		return err
	}
	if err := errors.Join(f.command.check(a), f.owner.check(a)); err != nil {
		return err
	}
	if f.owner.detach && (f.command.tty || f.command.interactive) {
		return usageErrorf("--detach leaves the command without a terminal and without input: leave -i and -t out")
	}
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	s, err := a.runnable(ctx, host, spec, policy, f.owner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if len(args) == 0 {
		m := s.Metadata()
		if args = append(append([]string{}, m.Entrypoint...), m.Cmd...); len(args) == 0 {
			return usageErrorf("%s says of no command to run: add one after --", ref)
		}
	}
	if l, ok := s.(*leased); ok && f.owner.detach {
		return a.leave(ctx, l, s.Command(args), f)
	}
	return a.runIn(ctx, s, s.Command(args), f.command)
}

// leave starts a command in a sandbox of the daemon's and leaves both to it.
func (a *app) leave(ctx context.Context, l *leased, cmd guest.Command, f runFlags) error {
	a.complete(&cmd, f.command)
	cmd.Detach = true
	process, err := l.Agent().Start(ctx, cmd)
	if err != nil {
		return &execError{err}
	}
	process.Detach()
	l.kept = true
	return a.printSandbox(l.id)
}

// runnable wakes what spec.Image names: a snapshot, or else the frozen machine of an image, which is made unless it is there.
// The policy is no part of spec, since a snapshot has a network of its own kind.
func (a *app) runnable(ctx context.Context, host *sandbox.Host, spec sandbox.CreateSpec, policy network.Policy, o ownerFlags) (machine, error) {
	w := waker{app: a, owner: o, host: host, ref: spec.Image, options: sandbox.ResumeOptions{Accel: spec.Accel, Policy: policy}}
	progress := a.showSlow()
	defer progress.stop()
	s, notASnapshot := w.start(ctx, progress)
	if !is[*snapshot.NotFoundError](notASnapshot) {
		return s, notASnapshot
	}
	img, err := host.Images.Resolve(ctx, spec.Image, image.Platform{OS: "linux", Arch: spec.Arch})
	switch {
	case errors.Is(err, image.ErrNotFound), errors.Is(err, image.ErrReference):
		return nil, fmt.Errorf("%q is neither a snapshot nor an image: %w", spec.Image, err)
	case err != nil:
		return nil, err
	}
	spec.Policy = policy
	if err := spec.Check(); err != nil {
		return nil, usageErrorf("%v", err)
	}
	w.ref = frozenName(img, spec)
	spec.Names = []string{w.ref}
	spec.NoPrefetch = !host.Snapshots.IsFar() // it is to be woken at once, and here
	s, err = w.start(ctx, progress)
	// A machine that was frozen by another version of the engine, or on another accelerator, is made again; the name then points to the new one.
	if !is[*snapshot.NotFoundError](err) && !is[*snapshot.IncompatibleError](err) && !answered(err, http.StatusConflict) {
		return s, err
	}
	snap, err := host.Create(ctx, spec, progress)
	if err != nil {
		return nil, err
	}
	if err := snap.Close(); err != nil {
		return nil, err
	}
	return w.start(ctx, progress)
}

// frozenName is the name of an image's frozen machine: whatever decides what it is has a part in it.
func frozenName(img *image.Image, spec sandbox.CreateSpec) string {
	what := fmt.Appendf(nil, "%s\n%s\n%d\n%d\n%d\n%s\n%s\n", img.Digest, spec.Arch, spec.CPUs, spec.MemoryBytes, spec.DiskBytes, spec.Net, spec.Kernel)
	if spec.Engine != engineQEMU {
		what = fmt.Appendf(what, "%s\n", spec.Engine)
	}
	sum := sha256.Sum256(what)
	return path.Join("run", hex.EncodeToString(sum[:12]))
}
