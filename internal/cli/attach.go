package cli

import (
	"context"
	"os"

	"golang.org/x/term"

	"github.com/sporevm/spore/internal/guest"
)

// attachable is a sandbox, of this process or of a daemon, that a command can be run in.
type attachable interface {
	Agent() *guest.Client
	Done() <-chan struct{} // closed when it has ended; Err then says why
	Err() error
}

// explainer is an attachable that may know more of why something failed than the error says.
type explainer interface {
	explain(ctx context.Context, err error) error
}

// attach runs a command in the guest with this process's streams as its own, to its end. With tty the command gets a terminal of its own, and ours
// becomes a window to it.
func (a *app) attach(ctx context.Context, s attachable, cmd guest.Command, stdin, tty bool) (guest.ExitStatus, error) {
	cmd.Stdout, cmd.Stderr = a.Out, a.Err
	if stdin {
		cmd.Stdin = a.In
	}
	if !tty {
		return a.await(ctx, s, cmd, nil)
	}
	size := guest.Size{Cols: 80, Rows: 24}
	screen, onScreen := terminal(a.Out)
	if onScreen {
		if columns, rows, err := term.GetSize(int(screen.Fd())); err == nil {
			size = guest.Size{Cols: uint32(columns), Rows: uint32(rows)}
		}
	}
	cmd.TTY = &size
	if cmd.Env["TERM"] == "" {
		cmd.Env = withEnv(cmd.Env, "TERM", first(a.Getenv("TERM"), "xterm"))
	}
	if keyboard, ok := terminal(a.In); ok && stdin {
		restore, err := rawTerminal(keyboard)
		if err != nil {
			return guest.ExitStatus{}, err
		}
		defer restore()
	}
	if !onScreen {
		screen = nil
	}
	return a.await(ctx, s, cmd, screen)
}

// await starts a command and waits for its end. The size of screen, if any, is passed on as it changes.
func (a *app) await(ctx context.Context, s attachable, cmd guest.Command, screen *os.File) (guest.ExitStatus, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.Done():
			cancel(s.Err())
		case <-ctx.Done():
		}
	}()
	process, err := s.Agent().Start(ctx, cmd)
	if err != nil {
		if ctx.Err() != nil {
			return guest.ExitStatus{}, context.Cause(ctx)
		}
		return guest.ExitStatus{}, &execError{err}
	}
	if screen != nil {
		stop := watchSize(screen, func(columns, rows int) {
			_ = process.Resize(ctx, guest.Size{Cols: uint32(columns), Rows: uint32(rows)}) // the next change tries again
		})
		defer stop()
	}
	status, err := process.Wait()
	switch {
	case err == nil:
		return status, nil
	case ctx.Err() != nil:
		return status, context.Cause(ctx)
	}
	if e, ok := s.(explainer); ok {
		err = e.explain(ctx, err)
	}
	return status, err
}

// shell opens an interactive shell in the guest: bash where there is one.
func (a *app) shell(ctx context.Context, s machine) error {
	_, tty := terminal(a.In)
	line := "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"
	cmd := s.Command([]string{"/bin/sh", "-c", line})
	_, err := a.attach(ctx, s, cmd, true, tty)
	return err
}

func withEnv(env map[string]string, name, value string) map[string]string {
	out := make(map[string]string, len(env)+1)
	for k, v := range env {
		out[k] = v
	}
	out[name] = value
	return out
}
