package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// maxIterations bounds --iterations: a million wakes take more than a day.
const maxIterations = 1_000_000

// resumeFlags are what resume takes.
type resumeFlags struct {
	iterations       int
	cold, noPrefetch bool
	accel            string
	reach            reachFlags
	owner            ownerFlags

	pause                                 bool
	signalPause, cmdPause, cmdSignalPause string
	to                                    string
	names                                 []string
}

func (a *app) resumeCommand() *cobra.Command {
	var f resumeFlags
	c := &cobra.Command{
		Use:   "resume SNAPSHOT",
		Short: "Wake a snapshot: look around, time it, or freeze it again",
		Long: `Wakes a snapshot and opens a shell in it. The machine is gone when the shell ends; the snapshot never changes.

Where a daemon runs on this host that has the snapshot, the machine is a sandbox of the daemon's, listed by spore ps. With --detach it stays, without a shell,
and its id is printed. What is timed or frozen again runs in this process.

With --iterations N it is woken N times instead, and each wake is timed from the call until the guest's agent has answered, by phases:
open (description and device state, read and checked), memory (laid out flat in the cache: real work only the first time on a host), spawn (start of the VMM's
process), load (device state into it), wake (identity handed over and confirmed).

From a bucket memory is not laid out: pages come over when they are touched, and those that create has seen touched come a little before. That takes FUSE and
root; without them all of memory comes first.

With one of the pause flags it is frozen again, as a child whose id is printed:
  --pause                  at once
  --signal-pause SIG       when spore receives the signal
  --cmd-pause CMD          if the command succeeds in the guest (as root, in a login shell, at most 10 min); if it fails nothing is kept
  --cmd-signal-pause CMD   starts the command in the guest, and freezes when spore receives SIGUSR1`,
		Example: `  spore resume py
  spore resume py --iterations 10
  spore resume py --cmd-pause 'echo hello > /root/note' -t py-note`,
		Args:              exactArgs("one snapshot"),
		ValidArgsFunction: a.completeFirst(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.resume(cmd.Context(), args[0], f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	f.register(flags)
	flags.StringVar(&f.to, "to", "", "`UUID` of the child to freeze (default a new one)")
	flags.StringArrayVarP(&f.names, "tag", "t", nil, "`NAME` for the child; may be repeated")
	flags.StringVar(&f.accel, "accel", "auto", "what runs the guest: auto (as it was frozen), kvm or tcg")
	f.reach.register(flags)
	a.jailFlags(flags)
	f.owner.register(flags)
	a.daemonFlags(flags)
	a.trustFlags(flags)
	return c
}

// register declares what resume and resume-build share.
func (f *resumeFlags) register(flags *pflag.FlagSet) {
	flags.IntVar(&f.iterations, "iterations", 0, "wake so many times and report how long it took; 0: once, for a shell")
	flags.BoolVar(&f.cold, "cold", false, "from the second iteration on, drop what the host has cached of the snapshot first")
	flags.BoolVar(&f.noPrefetch, "no-prefetch", false, "from a bucket: fetch memory and disk when they are touched, and nothing before")
	flags.BoolVar(&f.pause, "pause", false, "freeze again at once")
	flags.StringVar(&f.signalPause, "signal-pause", "", "freeze again when spore receives this `SIGNAL`")
	flags.StringVar(&f.cmdPause, "cmd-pause", "", "freeze again if this `COMMAND` succeeds in the guest")
	flags.StringVar(&f.cmdSignalPause, "cmd-signal-pause", "", "start this `COMMAND` in the guest and freeze on SIGUSR1")
}

// check refuses what does not go together.
func (f *resumeFlags) check(a *app) (id uuid.UUID, err error) {
	modes := 0
	for _, on := range []bool{f.pause, f.signalPause != "", f.cmdPause != "", f.cmdSignalPause != ""} {
		if on {
			modes++
		}
	}
	switch {
	case f.iterations < 0 || f.iterations > maxIterations:
		return id, usageErrorf("--iterations %d: choose 0 to %d", f.iterations, maxIterations)
	case modes > 1:
		return id, usageErrorf("choose one of --pause, --signal-pause, --cmd-pause and --cmd-signal-pause")
	case modes == 1 && f.iterations > 1:
		return id, usageErrorf("--iterations %d: a snapshot to freeze again is woken once", f.iterations)
	case f.owner.detach && (modes > 0 || f.iterations > 0 || f.cold || f.noPrefetch || f.accel != "auto"):
		return id, usageErrorf("--detach leaves the machine to the daemon: it does not go with flags for what happens here")
	case modes == 0 && (f.to != "" || len(f.names) > 0):
		return id, usageErrorf("an id or a name for the child needs one of the pause flags")
	}
	if err := f.owner.check(a); err != nil {
		return id, err
	}
	for _, name := range f.names {
		if err := store.CheckName(name); err != nil {
			return id, usageErrorf("--tag: %v", err)
		}
	}
	if f.signalPause != "" {
		if _, err := parseSignal(f.signalPause); err != nil {
			return id, err
		}
	}
	if f.to != "" {
		return parseID(f.to)
	}
	return id, nil
}

func (f *resumeFlags) pauses() bool {
	return f.pause || f.signalPause != "" || f.cmdPause != "" || f.cmdSignalPause != ""
}

// parseSignal reads a signal's name with or without SIG, or its number.
func parseSignal(text string) (syscall.Signal, error) {
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	signal := unix.SignalNum(name)
	if n := 0; signal == 0 {
		if _, err := fmt.Sscanf(text, "%d", &n); err == nil && unix.SignalName(syscall.Signal(n)) != "" && fmt.Sprint(n) == text {
			signal = syscall.Signal(n)
		}
	}
	switch signal {
	case 0:
		return 0, usageErrorf("--signal-pause: there is no signal %q", text)
	case unix.SIGKILL, unix.SIGSTOP:
		return 0, usageErrorf("--signal-pause: no process can receive %s; USR1 is a good choice", unix.SignalName(signal))
	}
	return signal, nil
}

func (a *app) resume(ctx context.Context, ref string, f resumeFlags) (err error) {
	id, err := f.check(a)
	if err != nil {
		return err
	}
	policy, err := f.reach.policy()
	if err != nil {
		return err
	}
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	w := waker{app: a, owner: f.owner, host: host, ref: ref, options: sandbox.ResumeOptions{Accel: f.accel, NoPrefetch: f.noPrefetch, Policy: policy}}
	if f.iterations > 0 && !f.pauses() {
		return a.timeWakes(ctx, w, f.iterations, f.cold)
	}
	if !f.pauses() {
		return a.visit(ctx, w)
	}
	progress := a.showSlow()
	s, err := w.wake(ctx, progress)
	if err != nil {
		return err
	}
	progress.stop()
	defer func() { err = errors.Join(err, s.Close()) }()
	a.say("awake after %s ms", milliseconds(s.phases.Total))
	if err := a.untilPause(ctx, s.Sandbox, f); err != nil {
		return err
	}
	return a.freeze(ctx, s, sandbox.PauseSpec{ID: id, Names: f.names})
}

// visit wakes a snapshot for a shell, or for the daemon to have.
func (a *app) visit(ctx context.Context, w waker) (err error) {
	progress := a.showSlow()
	s, err := w.start(ctx, progress)
	if err != nil {
		return err
	}
	progress.stop()
	defer func() { err = errors.Join(err, s.Close()) }()
	a.say("awake after %s ms", milliseconds(s.Took()))
	if l, ok := s.(*leased); ok && w.owner.detach {
		l.kept = true
		return a.printSandbox(l.id)
	}
	return a.shell(ctx, s)
}

// frozen is the result of a pause as --json shows it.
type frozen struct {
	Snapshot *snapshot.Metadata `json:"snapshot"`
	Pause    pauseMS            `json:"pause"`
	Resume   phasesMS           `json:"resume"`
}

// pauseMS is a pause report in the units of the other results.
type pauseMS struct {
	Stopped     float64 `json:"stopped_ms"` // the guest stood still
	Total       float64 `json:"total_ms"`
	MemoryBytes int64   `json:"memory_bytes"` // what the child adds, before compression
	DiskBytes   int64   `json:"disk_bytes"`
}

// freeze pauses the sandbox and reports the child.
func (a *app) freeze(ctx context.Context, s *woken, spec sandbox.PauseSpec) error {
	progress := a.show()
	snap, report, err := s.Pause(ctx, spec, progress)
	if err != nil {
		return err
	}
	progress.end()
	defer snap.Close()
	if a.json {
		return a.printJSON(frozen{Snapshot: snap.Metadata(), Pause: pauseMS{Stopped: inMillis(report.Stopped), Total: inMillis(report.Total), MemoryBytes: report.MemoryBytes, DiskBytes: report.DiskBytes}, Resume: inMS(s.phases)})
	}
	a.say("frozen in %s ms, of which the guest stood still for %s ms; %s of memory and %s of disk changed",
		milliseconds(report.Total), milliseconds(report.Stopped), formatBytes(report.MemoryBytes), formatBytes(report.DiskBytes))
	return a.println(snap.ID())
}
