package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// UserCgroup is the control group of everything that is not the agent. It freezes together with its siblings, most of which are groups that user programs
// have made: only the agent lives at the root.
type UserCgroup struct {
	root, path string

	held []held // groups that Freeze has frozen
}

// held is a frozen group. The descriptor is open on the file that thaws it: see Machine.
type held struct {
	dir string
	fd  int
}

// NewUserCgroup makes the group "user" below the mount point of a cgroup2 hierarchy, with the controllers that the kernel has.
func NewUserCgroup(root string) (*UserCgroup, error) {
	c := &UserCgroup{root: root, path: filepath.Join(root, "user")}
	if err := delegate(root); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the control group of user processes: %w", err)
	}
	return c, nil
}

// delegate turns all controllers on for the children of a group.
func delegate(path string) error {
	names, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading the controllers of %s: %w", path, err)
	}
	for name := range strings.FieldsSeq(string(names)) {
		// One by one: a controller that refuses, as cpu does while real-time threads exist, must not keep the others from us.
		_ = os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+name), 0)
	}
	return nil
}

// Freeze stops all user processes and returns when they stand still. If they don't by ctx's end they run on.
func (c *UserCgroup) Freeze(ctx context.Context) error {
	groups, err := filepath.Glob(filepath.Join(c.root, "*", "cgroup.freeze"))
	if err != nil {
		return fmt.Errorf("looking for user processes: %w", err)
	}
	for _, file := range groups {
		if err := c.hold(filepath.Dir(file)); err != nil {
			return errors.Join(fmt.Errorf("freezing user processes: %w", err), c.Thaw())
		}
	}
	for _, h := range c.held {
		if err := waitFrozen(ctx, h.dir); err != nil {
			return errors.Join(fmt.Errorf("freezing user processes: %w", err), c.Thaw())
		}
	}
	return nil
}

// hold begins to freeze a group, unless that is what a user program did before: then it must stay frozen when we thaw.
func (c *UserCgroup) hold(dir string) error {
	state, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the group has gone meanwhile
	}
	if err != nil || bytes.HasPrefix(state, []byte("1")) {
		return err
	}
	fd, err := unix.Open(filepath.Join(dir, "cgroup.freeze"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if _, err := unix.Pwrite(fd, []byte("1"), 0); err != nil {
		unix.Close(fd)
		return err
	}
	c.held = append(c.held, held{dir, fd})
	return nil
}

func waitFrozen(ctx context.Context, dir string) error {
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	for {
		frozen, err := readFrozen(events)
		if err != nil || frozen {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("some in %s do not stop: %w", filepath.Base(dir), ctx.Err())
		}
		if err := waitEvent(events); err != nil {
			return err
		}
	}
}

func readFrozen(events *os.File) (bool, error) {
	var buf [256]byte
	n, err := events.ReadAt(buf[:], 0)
	if n == 0 && err != nil {
		return false, err
	}
	return bytes.Contains(buf[:n], []byte("frozen 1")), nil
}

// waitEvent waits for a change of the file, but not so long that a caller could not look at its deadline.
func waitEvent(events *os.File) error {
	const limit = 20 // milliseconds
	fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
	if _, err := unix.Poll(fds, limit); err != nil && err != unix.EINTR {
		return err
	}
	return nil
}

// Thaw lets the processes run that Freeze has stopped.
func (c *UserCgroup) Thaw() error {
	var failed error
	c.held = slices.DeleteFunc(c.held, func(h held) bool {
		_, err := unix.Pwrite(h.fd, []byte("0"), 0)
		if err != nil && err != unix.ENODEV { // the group has gone meanwhile
			failed = errors.Join(failed, fmt.Errorf("thawing user processes: %w", err))
			return false
		}
		unix.Close(h.fd)
		return true
	})
	return failed
}

// PIDs returns the processes in the group, its siblings and all groups below them.
func (c *UserCgroup) PIDs() ([]int, error) { return treePIDs(c.root, c.root) }

// treePIDs returns the processes in a group and all below it, but for those directly in one of except.
func treePIDs(dir string, except ...string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) { // a group that has gone meanwhile
				return nil
			}
			return err
		}
		if !d.IsDir() || slices.Contains(except, path) {
			return nil
		}
		in, err := groupPIDs(path)
		pids = append(pids, in...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing user processes: %w", err)
	}
	return pids, nil
}

// groupPIDs returns the processes directly in a group; none if it has gone.
func groupPIDs(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	var pids []int
	for line := range bytes.Lines(text) {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func write(dir, file, value string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
}
