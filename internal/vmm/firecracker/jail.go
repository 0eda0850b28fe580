package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
)

// Jail says how Firecracker's jailer confines machines. Every machine has a user, a group and a folder of its own. It takes root, a Firecracker that is linked
// statically, and the jailer of the same version.
type Jail struct {
	Jailer        string   // path of the jailer
	Base          string   // holds the jails; a machine's files are mounted into its own
	FirstID       uint32   // of the users and groups that are handed out …
	IDs           uint32   // … and how many there are: so many machines can run
	CgroupVersion int      // 1 or 2; 0: 1, as the jailer has it
	Cgroups       []string // such as "memory.max=1073741824"
	ParentCgroup  string   // empty: the name of Firecracker's binary
	Limits        []string // such as "no-file=4096"
}

// check refuses what the jailer would, before anything is made.
func (j Jail) check() error {
	switch {
	case os.Geteuid() != 0:
		return errors.New("firecracker's jailer takes root")
	case j.FirstID == 0 || j.IDs == 0 || uint64(j.FirstID)+uint64(j.IDs) > 1<<31:
		return fmt.Errorf("jails with %d users from %d on: choose users that nobody else is", j.IDs, j.FirstID)
	case j.CgroupVersion < 0 || j.CgroupVersion > 2:
		return fmt.Errorf("control groups of version %d: choose 1 or 2", j.CgroupVersion)
	case filepath.IsAbs(j.ParentCgroup) || j.ParentCgroup != "" && !filepath.IsLocal(j.ParentCgroup):
		return fmt.Errorf("%s is not a folder below the root of the control groups", j.ParentCgroup)
	}
	for _, c := range append(append([]string(nil), j.Cgroups...), j.Limits...) {
		if name, value, ok := strings.Cut(c, "="); !ok || name == "" || value == "" || strings.Contains(name, "/") {
			return fmt.Errorf("%q is not of the form name=value", c)
		}
	}
	if _, err := os.Stat(j.Jailer); err != nil {
		return fmt.Errorf("looking for Firecracker's jailer: %w", err)
	}
	return nil
}

// arguments returns the jailer's command line.
func (j Jail) arguments(id string, who uint32, binary, netns string, own []string) []string {
	number := strconv.FormatUint(uint64(who), 10)
	args := []string{"--id", id, "--exec-file", binary, "--uid", number, "--gid", number, "--chroot-base-dir", j.Base}
	if j.CgroupVersion != 0 {
		args = append(args, "--cgroup-version", strconv.Itoa(j.CgroupVersion))
	}
	for _, c := range j.Cgroups {
		args = append(args, "--cgroup", c)
	}
	if j.ParentCgroup != "" {
		args = append(args, "--parent-cgroup", j.ParentCgroup)
	}
	for _, l := range j.Limits {
		args = append(args, "--resource-limit", l)
	}
	if netns != "" {
		args = append(args, "--netns", netns)
	}
	return append(append(args, "--"), own...)
}

// takeID takes a user that no other machine has, whatever process started it, until the lock is closed.
func (j Jail) takeID() (uint32, *os.File, error) {
	dir := filepath.Join(j.Base, "users")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, nil, fmt.Errorf("making the folder of jails: %w", err)
	}
	for id := j.FirstID; id < j.FirstID+j.IDs; id++ {
		lock, err := os.OpenFile(filepath.Join(dir, strconv.FormatUint(uint64(id), 10)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return 0, nil, fmt.Errorf("taking a user for a jail: %w", err)
		}
		err = flock.Try(lock, flock.Exclusive)
		if err == nil {
			return id, lock, nil
		}
		lock.Close()
		if !errors.Is(err, flock.ErrHeld) {
			return 0, nil, fmt.Errorf("taking a user for a jail: %w", err)
		}
	}
	return 0, nil, fmt.Errorf("all %d users for jails are taken: end some machines, or allow more", j.IDs)
}

// cell is one machine's jail.
type cell struct {
	jail  Jail
	id    string
	who   syscall.Credential
	lock  *os.File // on the user
	outer string   // the folder that the jailer names after the id
	name  string   // of the binary
}

// newCell takes a user and makes the folders that the machine's files are put in. What earlier machines of that user have left behind is removed.
func newCell(j Jail, name, binary string) (_ *cell, err error) {
	if err := j.check(); err != nil {
		return nil, err
	}
	user, lock, err := j.takeID()
	if err != nil {
		return nil, err
	}
	c := &cell{jail: j, lock: lock, who: syscall.Credential{Uid: user, Gid: user}, name: filepath.Base(binary)}
	suffix := fmt.Sprintf("-%d", user)
	c.id = instanceID(name[:min(len(name), 64-len(suffix))] + suffix)
	c.outer = filepath.Join(j.Base, c.name, c.id)
	if err := c.clearEarlier(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := os.MkdirAll(c.inside(fdPath(fdHome)+"/.."), 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("making a jail: %w", err), c.release())
	}
	return c, nil
}

// inside returns where a path of the jailed process is outside. The paths below /proc/self/fd are plain folders and files there: no other /proc is in a jail.
func (c *cell) inside(path string) string { return filepath.Join(c.outer, "root", path) }

// clear removes the jail, mounts first.
func (c *cell) clear() error {
	dir := c.inside("/proc/self/fd")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a jail: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("removing a jail: unmounting %s: %w", e.Name(), err)
		}
	}
	if err := os.RemoveAll(c.outer); err != nil {
		return fmt.Errorf("removing a jail: %w", err)
	}
	return nil
}

// release removes the jail and its control groups, and gives the user back.
func (c *cell) release() error {
	err := errors.Join(c.clear(), c.clearCgroups())
	return errors.Join(err, c.lock.Close()) // last: nobody is to be the same user before
}

// clearCgroups removes the control groups that the jailer has made.
func (c *cell) clearCgroups() error {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return fmt.Errorf("removing a jail's control groups: %w", err)
	}
	parent := c.jail.ParentCgroup
	if parent == "" {
		parent = c.name
	}
	for line := range bytes.Lines(mounts) {
		fields := strings.Fields(string(line))
		if len(fields) < 3 || fields[2] != "cgroup" && fields[2] != "cgroup2" {
			continue
		}
		group := filepath.Join(fields[1], parent, c.id)
		for try := 0; ; try++ {
			// A process that has just ended may be counted for a moment.
			if err = os.Remove(group); !errors.Is(err, unix.EBUSY) || try == 100 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("removing a jail's control groups: %w", err)
		}
	}
	return nil
}

// place puts a file where the jailed process looks for a descriptor.
func (c *cell) place(fd int, f *os.File) error {
	target := c.inside(fdPath(fd))
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		if err := unix.Mknod(target, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: target, Err: err}
		}
		return give(target, &c.who)
	}
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(fdPath(int(f.Fd())), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s into the jail: %w (a jailed Firecracker takes files that have a name, and block devices)", f.Name(), err)
	}
	return nil
}

// own makes a file of the jailed process's own.
func (c *cell) own(fd int, content []byte) (*os.File, error) {
	f, err := os.OpenFile(c.inside(fdPath(fd)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(cage.WriteAt(f, content), f.Chown(int(c.who.Uid), int(c.who.Gid))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// spawnJailed starts the process in a jail.
func (m *Machine) spawnJailed(ctx context.Context, j Jail, f facts, c vmm.Config) (err error) {
	if c.Disk != nil {
		defer c.Disk.Close()
	}
	cell, err := newCell(j, c.Name, f.path)
	if err != nil {
		return err
	}
	m.release = cell.release
	if m.home, err = newHome(cell.inside(fdPath(fdHome)), &cell.who); err != nil {
		return errors.Join(err, cell.release())
	}
	if err = m.furnish(cell, c); err == nil {
		cmd := exec.Command(j.Jailer, j.arguments(cell.id, cell.who.Uid, f.path, netns(c), arguments(c.Name)[2:])...)
		m.Process, err = cage.Start(cmd, cage.Options{Name: "firecracker in its jail"})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making a jail: %w", err), m.home.close(), cell.release())
	}
	m.spawned()
	return nil
}

// furnish puts all that a machine needs into its jail.
func (m *Machine) furnish(cell *cell, c vmm.Config) (err error) {
	if m.home.state, err = cell.own(fdState, nil); err != nil {
		return err
	}
	if m.home.sink, err = cell.own(fdSink, nil); err != nil {
		return err
	}
	if c.Disk != nil {
		if err := cell.place(fdDisk, c.Disk); err != nil {
			return err
		}
	}
	paths := map[int]string{}
	if c.Boot != nil {
		paths[fdKernel] = c.Boot.Kernel
		if c.Boot.Initramfs != "" {
			paths[fdInitramfs] = c.Boot.Initramfs
		}
	} else {
		incoming, err := cell.own(fdIncoming, c.State)
		if err != nil {
			return err
		}
		incoming.Close()
		if c.Uffd != "" {
			paths[fdUffd] = c.Uffd
		} else if err := cell.place(fdMemory, c.Memory); err != nil {
			return err
		}
	}
	for fd, path := range paths {
		n, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		file := os.NewFile(uintptr(n), path)
		err = cell.place(fd, file)
		file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
