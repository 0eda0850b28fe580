package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endPatience is how long a killed machine may take to end.
const endPatience = 10 * time.Second

// clearEarlier removes what earlier machines of the user have left whose owners died. The user was free, so that none of them is anybody's; the jailer's change
// of user makes a machine outlive its owner.
func (c *cell) clearEarlier() error {
	suffix := fmt.Sprintf("-%d", c.who.Uid)
	kinds, err := os.ReadDir(c.jail.Base)
	if err != nil {
		return fmt.Errorf("looking for earlier jails: %w", err)
	}
	for _, kind := range kinds {
		if !kind.IsDir() {
			continue
		}
		jails, err := os.ReadDir(filepath.Join(c.jail.Base, kind.Name()))
		if err != nil {
			return fmt.Errorf("looking for earlier jails: %w", err)
		}
		for _, j := range jails {
			if !j.IsDir() || !strings.HasSuffix(j.Name(), suffix) {
				continue
			}
			old := &cell{jail: c.jail, id: j.Name(), who: c.who, name: kind.Name(), outer: filepath.Join(c.jail.Base, kind.Name(), j.Name())}
			if err := errors.Join(old.end(), old.clear(), old.clearCgroups()); err != nil {
				return err
			}
		}
	}
	return nil
}

// end kills the machine that still runs in a jail, and waits for its end.
func (c *cell) end() error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("looking for a jail's machine: %w", err)
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || !c.holds(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("getting hold of process %d, in a jail that nobody owns: %w", pid, err)
		}
		if c.holds(pid) { // still: it has that number as long as the descriptor is open
			err = endProcess(fd, pid)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// holds tells whether a process is the jail's machine: by its user, which is the jail's alone, and by the id that the jailer has given it.
func (c *cell) holds(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(line, []byte("\x00--id\x00"+c.id+"\x00")) {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && bytes.Contains(status, fmt.Appendf(nil, "\nUid:\t%d\t", c.who.Uid))
}

func endProcess(fd, pid int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d, in a jail that nobody owns: %w", pid, err)
	}
	deadline := time.Now().Add(endPatience)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for the end of process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d, in a jail that nobody owns, was killed and has not ended in %v", pid, endPatience)
		default:
			return nil
		}
	}
}
