package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
)

// How E2B's templates are built: how often and how long a ready command is tried, and how long a start command without one may take to settle.
const (
	readyInterval = 2 * time.Second
	readyTimeout  = 10 * time.Minute
	settleTimeout = 20 * time.Second
	outputKept    = 16 << 10 // bytes of a command's output that errors show
)

// StartError says that a start command failed before the machine was ready.
type StartError struct {
	Command string
	Status  guest.ExitStatus
	Output  string
}

func (e *StartError) Error() string {
	return fmt.Sprintf("the start command ended (%v) before the machine was ready: %s%s", e.Status, e.Command, quoted(e.Output))
}

// ReadyError says that a ready command never succeeded.
type ReadyError struct {
	Command  string
	Attempts int
	Elapsed  time.Duration
	Status   guest.ExitStatus // of the last attempt that had time to end
	Output   string           // of the same
}

func (e *ReadyError) Error() string {
	return fmt.Sprintf("the ready command did not succeed in %d attempts over %v (last: %v): %s%s", e.Attempts, e.Elapsed.Round(time.Second), e.Status, e.Command, quoted(e.Output))
}

func quoted(output string) string {
	output = strings.TrimSpace(output)
	if output == "" {
		return "\nit printed nothing"
	}
	return "\nend of its output:\n  " + strings.ReplaceAll(output, "\n", "\n  ")
}

// startAndWait runs the start command, leaves it running, and waits until the ready command succeeds.
func (s *Sandbox) startAndWait(ctx context.Context, readyTimeout time.Duration, p Progress) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	if s.meta.StartCommand != "" {
		p.Phase("start")
		if err := s.startCommand(ctx, fail); err != nil {
			return err
		}
	}
	p.Phase("ready")
	switch {
	case s.meta.ReadyCommand != "":
		return s.waitReady(ctx, readyTimeout)
	case s.meta.StartCommand != "":
		return s.settle(ctx)
	}
	return nil
}

// startCommand starts the start command and calls fail if it fails. One that ends well may have left a service behind.
func (s *Sandbox) startCommand(ctx context.Context, fail context.CancelCauseFunc) error {
	alive, cancel := s.whileAlive(ctx)
	defer cancel()
	output := new(tail)
	cmd := s.Command(shell(s.meta.StartCommand))
	cmd.Stdout, cmd.Stderr, cmd.Detach = output, output, true
	process, err := s.client.Start(alive, cmd)
	if err != nil {
		return s.explain(alive, fmt.Errorf("running the start command %q: %w", s.meta.StartCommand, err))
	}
	go func() {
		if status, err := process.Wait(); err == nil && !status.Success() {
			fail(&StartError{Command: s.meta.StartCommand, Status: status, Output: output.String()})
		}
	}()
	return nil
}

// waitReady tries the ready command until it succeeds, or ctx ends because the start command has failed.
func (s *Sandbox) waitReady(ctx context.Context, limit time.Duration) error {
	if limit == 0 {
		limit = readyTimeout
	}
	begin := time.Now()
	failed := &ReadyError{Command: s.meta.ReadyCommand}
	for {
		output := new(tail)
		cmd := s.Command(shell(s.meta.ReadyCommand))
		cmd.Stdout, cmd.Stderr = output, output
		left := limit - time.Since(begin)
		timed, cancel := context.WithTimeout(ctx, left)
		status, err := s.Run(timed, cmd)
		late := timed.Err() != nil
		cancel()
		failed.Attempts++
		failed.Elapsed = time.Since(begin)
		// One that was cut short when it had hardly begun tells less than the one before.
		if cut := late && status.Text == ""; !cut || failed.Attempts == 1 || left > readyInterval {
			failed.Status, failed.Output = status, output.String()
			if cut {
				failed.Status.Text = "still running"
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && status.Success():
			return nil
		case late || failed.Elapsed+readyInterval >= limit:
			return failed
		case err != nil:
			return fmt.Errorf("running the ready command %q: %w", s.meta.ReadyCommand, err)
		}
		if err := s.wait(ctx, readyInterval); err != nil {
			return err
		}
	}
}

// settle gives a start command without a ready command time: until the guest has been idle for a second, at most settleTimeout.
func (s *Sandbox) settle(ctx context.Context) error {
	deadline := time.Now().Add(settleTimeout)
	last, err := s.stats(ctx)
	if err != nil {
		return err
	}
	for time.Now().Before(deadline) {
		if err := s.wait(ctx, time.Second); err != nil {
			return err
		}
		now, err := s.stats(ctx)
		if err != nil {
			return err
		}
		if total := now.CPUTotal - last.CPUTotal; total > 0 && float64(now.CPUBusy-last.CPUBusy) < 0.1*float64(total) {
			return nil
		}
		last = now
	}
	return nil
}

func (s *Sandbox) stats(ctx context.Context) (api.Stats, error) {
	alive, cancel := s.whileAlive(ctx)
	defer cancel()
	stats, err := s.client.Stats(alive)
	switch {
	case err == nil:
		return stats, nil
	case ctx.Err() != nil:
		return stats, context.Cause(ctx)
	}
	return stats, s.explain(alive, fmt.Errorf("asking the guest how busy it is: %w", err))
}

// wait waits for d, unless the machine or ctx ends before.
func (s *Sandbox) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.Done():
		return s.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Command fills in how a command runs in this sandbox: user, working directory and environment of its snapshot. Environment given later wins.
func (s *Sandbox) Command(args []string) guest.Command {
	c := s.meta.Context
	return guest.Command{Args: args, Env: c.Env, Dir: c.Workdir, User: c.User}
}

// Run runs a command to its end.
func (s *Sandbox) Run(ctx context.Context, cmd guest.Command) (guest.ExitStatus, error) {
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	process, err := s.Agent().Start(ctx, cmd)
	if err != nil {
		return guest.ExitStatus{}, s.explain(ctx, err)
	}
	status, err := process.Wait()
	return status, s.explain(ctx, err)
}

// shell returns how to run a command line: by the guest's shell, or directly if it is written as a JSON array, for images without one.
func shell(line string) []string {
	var words []string
	if strings.HasPrefix(strings.TrimSpace(line), "[") && json.Unmarshal([]byte(line), &words) == nil && len(words) > 0 {
		return words
	}
	return []string{"/bin/sh", "-c", line}
}

// environment turns NAME=VALUE entries into a map; the last of several wins.
func environment(list []string) map[string]string {
	env := make(map[string]string, len(list))
	for _, entry := range list {
		if name, value, ok := strings.Cut(entry, "="); ok {
			env[name] = value
		}
	}
	return env
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - outputKept; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
