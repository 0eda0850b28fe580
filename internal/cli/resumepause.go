package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
)

// cmdPauseTimeout is the limit of E2B's orchestrator for a --cmd-pause command.
const cmdPauseTimeout = 10 * time.Minute

// untilPause returns when the machine is to be frozen, by whichever flag says so.
func (a *app) untilPause(ctx context.Context, s *sandbox.Sandbox, f resumeFlags) error {
	switch {
	case f.signalPause != "":
		sig, err := parseSignal(f.signalPause)
		if err != nil {
			return err
		}
		return a.awaitSignal(ctx, s, sig, nil)
	case f.cmdPause != "":
		return a.cmdPause(ctx, s, f.cmdPause)
	case f.cmdSignalPause != "":
		return a.cmdSignalPause(ctx, s, f.cmdSignalPause)
	}
	return nil
}

// loginShell is how the commands of the pause flags run: as root.
func loginShell(s *sandbox.Sandbox, line string) guest.Command {
	cmd := s.Command([]string{"/bin/sh", "-lc", line})
	cmd.User, cmd.Dir = "root", "/root"
	return cmd
}

// cmdPauseError is a --cmd-pause command that failed.
type cmdPauseError struct {
	line   string
	status guest.ExitStatus
}

func (e *cmdPauseError) Error() string {
	return fmt.Sprintf("the command failed (%v), so nothing was frozen: %s", e.status, e.line)
}

func (a *app) cmdPause(ctx context.Context, s *sandbox.Sandbox, line string) error {
	timed, cancel := context.WithTimeoutCause(ctx, cmdPauseTimeout, fmt.Errorf("the command did not end in %v, so nothing was frozen: %s", cmdPauseTimeout, line))
	defer cancel()
	cmd := loginShell(s, line)
	cmd.Stdout, cmd.Stderr = a.Err, a.Err // stdout is for the child's id
	status, err := a.await(timed, s, cmd, nil)
	if err != nil {
		return fmt.Errorf("running the command: %w", err)
	}
	if !status.Success() {
		return &cmdPauseError{line, status}
	}
	return nil
}

func (a *app) cmdSignalPause(ctx context.Context, s *sandbox.Sandbox, line string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := loginShell(s, line)
	cmd.Stdout, cmd.Stderr = a.Err, a.Err
	cmd.Detach = true // it lives on in the snapshot
	process, err := s.Agent().Start(ctx, cmd)
	if err != nil {
		return fmt.Errorf("starting the command: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		status, err := process.Wait()
		if err == nil && !status.Success() {
			err = &cmdPauseError{line, status}
		}
		ended <- err
	}()
	return a.awaitSignal(ctx, s, syscall.SIGUSR1, ended)
}

// awaitSignal returns nil when this process receives sig. A command that fails meanwhile, the machine's death and an interruption are errors.
func (a *app) awaitSignal(ctx context.Context, s *sandbox.Sandbox, sig syscall.Signal, ended <-chan error) error {
	received := make(chan os.Signal, 1)
	signal.Reset(sig) // TERM, for one, interrupted spore until now; from here on, and while it freezes, it does not
	signal.Notify(received, sig)
	a.say("waiting for %s to freeze: kill -%s %d", unix.SignalName(sig), unix.SignalName(sig)[3:], os.Getpid())
	for {
		select {
		case <-received:
			return nil
		case err := <-ended:
			if err != nil {
				return err
			}
			ended = nil // it did its work; the signal still decides when
		case <-s.Done():
			return s.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
