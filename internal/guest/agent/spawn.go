package agent

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/process"
)

// stdio is the pair of ends of a new process's standard streams.
type stdio struct {
	child  [3]int     // descriptors for the process; equal ones are closed once
	parent []*os.File // all ends that stay here, for cleaning up

	stdin, stdout, stderr *os.File // nil where there is none
	tty                   *os.File // terminal instead of the three
}

// closeChild drops the process's ends here, so that their end is seen.
func (s *stdio) closeChild() {
	for i, fd := range s.child {
		if fd >= 0 && (i == 0 || fd != s.child[i-1]) {
			unix.Close(fd)
		}
		s.child[i] = -1
	}
}

func (s *stdio) closeAll() {
	s.closeChild()
	for _, f := range s.parent {
		f.Close()
	}
}

// openPipes makes standard streams out of pipes.
func openPipes(withStdin bool) (_ *stdio, err error) {
	s := &stdio{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()
	if withStdin {
		if s.child[0], s.stdin, err = s.pipe(false, "stdin"); err != nil {
			return nil, err
		}
	} else if s.child[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("opening /dev/null: %w", err)
	}
	if s.child[1], s.stdout, err = s.pipe(true, "stdout"); err != nil {
		return nil, err
	}
	if s.child[2], s.stderr, err = s.pipe(true, "stderr"); err != nil {
		return nil, err
	}
	return s, nil
}

// pipe makes one pipe. Only our end is non-blocking: the process expects to
// block on its own.
func (s *stdio) pipe(childWrites bool, name string) (child int, parent *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, fmt.Errorf("making a pipe: %w", err)
	}
	child, ours := p[1], p[0]
	if !childWrites {
		child, ours = p[0], p[1]
	}
	unix.SetNonblock(ours, true)
	unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, chunkSize) // a smaller one will do
	parent = os.NewFile(uintptr(ours), name)
	s.parent = append(s.parent, parent)
	return child, parent, nil
}

// openTerminal makes standard streams out of a pseudo terminal.
func openTerminal(size *process.PTY_Size, acc account) (*stdio, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	s := &stdio{child: [3]int{-1, -1, -1}, parent: []*os.File{master}, tty: master}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		s.closeAll()
		return nil, fmt.Errorf("unlocking the terminal: %w", err)
	}
	// Asking the master for its peer works without /dev/pts being visible.
	slave, err := openPeer(fd)
	if err != nil {
		s.closeAll()
		return nil, fmt.Errorf("opening the terminal's other side: %w", err)
	}
	s.child = [3]int{slave, slave, slave}
	if err := resize(master, size); err != nil {
		s.closeAll()
		return nil, err
	}
	// The session's user owns its terminal, or its programs could not reopen it.
	unix.Fchown(slave, int(acc.UID), int(acc.GID))
	return s, nil
}

// openPeer opens the other side of a terminal. The flags are the ioctl's
// argument itself, which the generic ioctl helpers have no form for.
func openPeer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// resize tells a terminal its size. No size, or a zero side, leaves 80 by 24.
func resize(tty *os.File, size *process.PTY_Size) error {
	ws := unix.Winsize{Col: 80, Row: 24}
	if c := size.GetCols(); c > 0 {
		ws.Col = uint16(min(c, 1<<16-1))
	}
	if r := size.GetRows(); r > 0 {
		ws.Row = uint16(min(r, 1<<16-1))
	}
	conn, err := tty.SyscallConn()
	if err != nil {
		return fmt.Errorf("resizing the terminal: %w", err)
	}
	var ioctl error
	if err := conn.Control(func(fd uintptr) { ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &ws) }); err != nil {
		return fmt.Errorf("resizing the terminal: %w", err)
	}
	if ioctl != nil {
		return fmt.Errorf("resizing the terminal: %w", ioctl)
	}
	return nil
}

// spawn starts cmd in its own session, and in the control group if there is one
// (it is born there: no moment outside). The pidfd becomes readable at its end.
func spawn(cmd *command, io *stdio, cgroupFD int) (pid int, pidfd *os.File, err error) {
	fd := -1
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	if io.tty != nil {
		attr.Setctty, attr.Ctty = true, 0
	}
	if cgroupFD > 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, cgroupFD
	}
	if os.Geteuid() == 0 {
		acc := cmd.account
		attr.Credential = &syscall.Credential{Uid: acc.UID, Gid: acc.GID, Groups: acc.Groups}
	}
	pid, err = syscall.ForkExec(cmd.path, cmd.argv, &syscall.ProcAttr{
		Dir:   cmd.dir,
		Env:   cmd.env,
		Files: []uintptr{uintptr(io.child[0]), uintptr(io.child[1]), uintptr(io.child[2])},
		Sys:   attr,
	})
	if err != nil {
		return 0, nil, spawnError(cmd, err)
	}
	if fd < 0 {
		unix.Kill(-pid, unix.SIGKILL)
		unix.Wait4(pid, nil, 0, nil)
		return 0, nil, errors.New("this kernel gives no pidfd (Linux 5.4 has it)")
	}
	unix.SetNonblock(fd, true)
	return pid, os.NewFile(uintptr(fd), "pidfd"), nil
}

// spawnError says what ForkExec's bare error number stands for.
func spawnError(cmd *command, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &startError{api.ReasonNotFound, fmt.Errorf("starting %s: its interpreter or loader is missing", cmd.path)}
	case errors.Is(err, unix.ENOEXEC):
		return &startError{api.ReasonPermission, fmt.Errorf("starting %s: not a program of this machine, and without a #! line", cmd.path)}
	case errors.Is(err, unix.EACCES):
		return &startError{api.ReasonPermission, fmt.Errorf("starting %s in %s as %s: %w", cmd.path, cmd.dir, cmd.account.Name, err)}
	}
	return fmt.Errorf("starting %s: %w", cmd.path, err)
}
