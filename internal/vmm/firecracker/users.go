package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
	"github.com/sporevm/spore/internal/vmm"
)

// tenant is a user that one jailed machine alone runs as, whatever process of the host starts machines. It implements [vmm.User].
type tenant struct {
	id   uint32
	lock *os.File
	once sync.Once
	err  error
}

// ID implements [vmm.User].
func (u *tenant) ID() int { return int(u.id) }

// Close implements [vmm.User].
func (u *tenant) Close() error {
	u.once.Do(func() { u.err = u.lock.Close() })
	return u.err
}

// newUser implements vmm.Needs.NewUser.
func (j *jails) newUser() (vmm.User, error) {
	if err := errors.Join(j.check(), j.prepare()); err != nil {
		return nil, err
	}
	u, err := j.takeUser()
	if err != nil {
		return nil, err
	}
	return u, nil
}

// takeUser takes a user that no other machine has.
func (j Jail) takeUser() (*tenant, error) {
	for id := j.FirstID; id < j.FirstID+j.IDs; id++ {
		u, err := j.takeID(id)
		if err != nil {
			return nil, fmt.Errorf("taking a user for a jail: %w", err)
		}
		if u != nil {
			return u, nil
		}
	}
	return nil, fmt.Errorf("all %d users for jails are taken: end some machines, or allow more", j.IDs)
}

// takeID takes a user, or returns nil if somebody has it.
func (j Jail) takeID(id uint32) (*tenant, error) {
	lock, err := os.OpenFile(filepath.Join(j.users(), strconv.FormatUint(uint64(id), 10)), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock.Try(lock, flock.Exclusive)
	if err == nil {
		return &tenant{id: id, lock: lock}, nil
	}
	lock.Close()
	if errors.Is(err, flock.ErrHeld) {
		return nil, nil
	}
	return nil, err
}

// sweep ends machines, and removes control groups, of users whom nobody has taken any more: the rest has gone with the machines' owners.
func (j Jail) sweep() error {
	locks, err := os.ReadDir(j.users())
	if err != nil {
		return fmt.Errorf("looking for jails that were left: %w", err)
	}
	for _, l := range locks {
		id, err := strconv.ParseUint(l.Name(), 10, 32)
		if err != nil {
			continue
		}
		u, err := j.takeID(uint32(id))
		if err != nil {
			return fmt.Errorf("looking for jails that were left: %w", err)
		}
		if u == nil {
			continue
		}
		if err := errors.Join(endUser(u.id), j.clearCgroups(cellSuffix(u.id)), u.Close()); err != nil {
			return err
		}
	}
	return nil
}

// endUser kills all processes of a user that is nobody's. A machine ends with its owner but for one that dies in the moment of starting it.
func endUser(id uint32) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("ending what a dead process has left: %w", err)
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		if text, err := os.ReadFile(filepath.Join("/proc", p.Name(), "status")); err == nil && hasUser(string(text), id) {
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			if errors.Is(err, unix.ESRCH) {
				err = nil
			}
			if err != nil {
				unix.Close(fd)
				return fmt.Errorf("ending process %d, which a dead process has left: %w", pid, err)
			}
		}
		unix.Close(fd)
	}
	return nil
}

// hasUser tells whether a process's status says that it runs as a user.
func hasUser(status string, id uint32) bool {
	for line := range strings.Lines(status) {
		if name, ids, _ := strings.Cut(line, ":"); name == "Uid" {
			fields := strings.Fields(ids)
			return len(fields) > 0 && fields[0] == strconv.FormatUint(uint64(id), 10)
		}
	}
	return false
}
