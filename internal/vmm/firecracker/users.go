package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
	"github.com/sporevm/spore/internal/vmm"
)

// tenant is a user that one jailed machine alone runs as, whatever process of the host starts machines. It implements [vmm.User].
type tenant struct {
	id   uint32
	lock *os.File // has content while somebody has the user, and ever after if he dies
	left bool     // its last owner has died
	once sync.Once
	err  error
}

// ID implements [vmm.User].
func (u *tenant) ID() int { return int(u.id) }

// Close implements [vmm.User].
func (u *tenant) Close() error {
	u.once.Do(func() { u.err = errors.Join(u.lock.Truncate(0), u.lock.Close()) })
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
		if u == nil {
			continue
		}
		if u.left {
			err = errors.Join(endUsers(map[uint32]bool{id: true}), j.clearCgroups(func(of uint32) bool { return of == id }))
		}
		if err != nil {
			u.lock.Close()
			return nil, fmt.Errorf("taking a user for a jail: %w", err)
		}
		return u, nil
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
		var info os.FileInfo
		if info, err = lock.Stat(); err == nil {
			if _, err = lock.WriteAt([]byte("\n"), 0); err == nil {
				return &tenant{id: id, lock: lock, left: info.Size() > 0}, nil
			}
		}
	}
	lock.Close()
	if errors.Is(err, flock.ErrHeld) {
		return nil, nil
	}
	return nil, err
}

// Sweep ends machines, and removes control groups, of users whom nobody has taken any more: the rest has gone with the machines' owners. Whoever starts machines begins
// with it.
func (j Jail) Sweep() error {
	locks, err := os.ReadDir(j.users())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking for jails that were left: %w", err)
	}
	for some := range slices.Chunk(locks, sweepBatch) {
		if err := j.sweep(some); err != nil {
			return err
		}
	}
	return nil
}

// sweepBatch is how many users are looked at together: each takes a descriptor.
const sweepBatch = 256

func (j Jail) sweep(locks []os.DirEntry) error {
	free := map[uint32]bool{}
	for _, l := range locks {
		id, err := strconv.ParseUint(l.Name(), 10, 32)
		if err != nil {
			continue
		}
		u, err := j.takeID(uint32(id))
		if err != nil {
			return fmt.Errorf("looking for jails that were left: %w", err)
		}
		if u != nil {
			free[u.id] = true
			defer u.Close()
		}
	}
	if len(free) == 0 {
		return nil
	}
	return errors.Join(endUsers(free), j.clearCgroups(func(id uint32) bool { return free[id] }))
}

// endUsers kills all processes of users that are nobody's. A machine ends with its owner but for one whose owner dies in the moment of starting it.
func endUsers(free map[uint32]bool) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("ending what a dead process has left: %w", err)
	}
	for _, p := range processes {
		if pid, err := strconv.Atoi(p.Name()); err == nil {
			if err := endIf(pid, free); err != nil {
				return fmt.Errorf("ending process %d, which a dead process has left: %w", pid, err)
			}
		}
	}
	return nil
}

// endIf kills a process if it runs as one of some users, in a root that is not ours: should somebody else be that user against all advice, he is spared.
func endIf(pid int, users map[uint32]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !users[realUser(string(status))] {
		return nil
	}
	ours, err := os.Stat("/")
	if err != nil {
		return err
	}
	if its, err := os.Stat(fmt.Sprintf("/proc/%d/root/.", pid)); err != nil || os.SameFile(ours, its) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	deadline := time.Now().Add(endPatience)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it was killed and has not ended in %v", endPatience)
		default:
			return nil
		}
	}
}

// endPatience is how long a killed machine may take to end.
const endPatience = 10 * time.Second

// realUser is whom a process runs as, as its status says; 0 if it does not.
func realUser(status string) uint32 {
	for line := range strings.Lines(status) {
		if name, ids, _ := strings.Cut(line, ":"); name == "Uid" {
			if fields := strings.Fields(ids); len(fields) > 0 {
				id, _ := strconv.ParseUint(fields[0], 10, 32)
				return uint32(id)
			}
		}
	}
	return 0
}
