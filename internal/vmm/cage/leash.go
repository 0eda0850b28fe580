package cage

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// leash makes the kernel kill a process when this one is gone. "Die with your parent" does not last: a process that changes its user, as a jailer does, loses it. So the
// process gets a pipe for its standard input, whose other end only we hold, and is made the owner of the pipe's signals, of which SIGKILL is chosen: when we are gone, the
// other end closes, and the kernel sends it.
type leash struct{ ours, theirs *os.File }

// newLeash makes a leash for a command that has not been started.
func newLeash(cmd *exec.Cmd) (*leash, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for the VMM: %w", err)
	}
	cmd.Stdin = theirs
	return &leash{ours, theirs}, nil
}

// fasten ties the running process to it. Until it is, and has changed its user, the process dies with the thread that has started it.
func (l *leash) fasten(pid int) error {
	fd := l.theirs.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETSIG, int(unix.SIGKILL)); err != nil {
		return fmt.Errorf("having the VMM die with us: choosing the signal: %w", err)
	}
	if _, err := unix.FcntlInt(fd, unix.F_SETOWN, pid); err != nil {
		return fmt.Errorf("having the VMM die with us: choosing the process: %w", err)
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_ASYNC)
	}
	if err != nil {
		return fmt.Errorf("having the VMM die with us: %w", err)
	}
	return l.theirs.Close() // the process has its own
}

// drop gives it up; a process that is fastened ends.
func (l *leash) drop() {
	l.ours.Close()
	l.theirs.Close()
}
