package cage

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

// Process is a VMM that was started in its cage. It carries the part of [vmm.Machine] that is the same for every engine.
type Process struct {
	name    string
	cmd     *exec.Cmd
	console *Console
	pidfd   int // -1 where the kernel gave none

	closed atomic.Bool
	done   chan struct{}
	err    error
	once   sync.Once
}

// Options say how a process is started.
type Options struct {
	Name  string              // the program's, for errors
	User  *syscall.Credential // nil: ours
	NetNS string              // path of its network namespace; empty: ours
	Paged bool                // as in vmm.Config

	// Room is for a process that makes a user and a root of its own, as a jailer does. It is called in a thread that the process is started from next, which has
	// mounts of its own and a network with nothing in it; what it mounts only that process sees, and is gone with it. Nil: the process has ours.
	Room func() error
}

// Start starts cmd in a cage. What it prints is kept.
func Start(cmd *exec.Cmd, o Options) (*Process, error) {
	p := &Process{name: o.Name, cmd: cmd, console: new(Console), pidfd: -1, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.console, p.console
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	wait, err := launch(cmd, o)
	if err != nil {
		return nil, err
	}
	if fd, err := unix.PidfdOpen(cmd.Process.Pid, 0); err == nil {
		p.pidfd = fd
	}
	go p.watch(wait)
	return p, nil
}

// watch notices the end of the process.
func (p *Process) watch(wait func() error) {
	err := wait()
	if p.closed.Load() {
		p.err = nil
	} else if err == nil {
		p.err = fmt.Errorf("%w: the guest has shut down%s", vmm.ErrDead, p.lastWords())
	} else {
		p.err = fmt.Errorf("%w: %s: %w%s", vmm.ErrDead, p.name, err, p.lastWords())
	}
	close(p.done)
}

func (p *Process) lastWords() string {
	log := p.console.String()
	if log == "" {
		return ""
	}
	return "\nits last output:\n" + log
}

// deathDelay is how long a process whose end shows is given to be gone. On a busy host that is not at once.
const deathDelay = 10 * time.Second

// Explain adds the reason of a death to an error that is likely its consequence.
func (p *Process) Explain(err error) error {
	if !errors.Is(err, vmm.ErrDead) {
		return err
	}
	select {
	case <-p.done:
		if p.err != nil {
			return p.err
		}
		return err
	case <-time.After(deathDelay):
		return err
	}
}

// Print adds to what the process has printed: what it says by other ways.
func (p *Process) Print(text []byte) { p.console.Write(text) }

// Done implements [vmm.Machine].
func (p *Process) Done() <-chan struct{} { return p.done }

// Err implements [vmm.Machine].
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Log implements [vmm.Machine].
func (p *Process) Log() string { return p.console.String() }

// PID implements [vmm.Machine].
func (p *Process) PID() int { return p.cmd.Process.Pid }

// End kills the process, by its pidfd, which can't hit another one that got the same number, and waits for its end.
func (p *Process) End() {
	p.once.Do(func() {
		p.closed.Store(true)
		if p.pidfd >= 0 {
			unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		} else {
			p.cmd.Process.Signal(syscall.SIGKILL)
		}
		<-p.done
		if p.pidfd >= 0 {
			unix.Close(p.pidfd)
		}
	})
}
