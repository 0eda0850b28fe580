package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
)

// cell is one machine's jail. It is a file system in memory that only the machine's process has mounted, and its files are mounted into that.
type cell struct {
	jail *jails
	id   string
	user *tenant
	who  syscall.Credential
	root string // what is the root to the process, as the thread sees it that starts it
	trees
}

// trees are what is to be mounted at the paths of descriptors: each is a mount that is attached nowhere yet.
type trees map[int]*os.File

func (t trees) close() {
	for _, f := range t {
		f.Close()
	}
	clear(t)
}

// cellSuffix ends the names of a user's machines.
func cellSuffix(user uint32) string { return fmt.Sprintf("-%d", user) }

// newCell makes a jail for a user that was taken for the machine, or takes one.
func newCell(j *jails, c vmm.Config, binary string) (*cell, error) {
	if err := errors.Join(j.check(), j.prepare()); err != nil {
		return nil, err
	}
	user, ours := c.User.(*tenant)
	if c.User != nil && !ours {
		return nil, errOtherUser
	}
	if user == nil {
		var err error
		if user, err = j.takeUser(); err != nil {
			return nil, err
		}
	}
	suffix := cellSuffix(user.id)
	id := instanceID(c.Name[:min(len(c.Name), 64-len(suffix))] + suffix)
	return &cell{
		jail: j, id: id, user: user, who: syscall.Credential{Uid: user.id, Gid: user.id},
		root: filepath.Join(j.room(), filepath.Base(binary), id, "root"), trees: trees{},
	}, nil
}

// inside returns where a path of the jailed process is to the thread that starts it. The paths below /proc/self/fd are plain folders and files there: no other /proc is in
// a jail.
func (c *cell) inside(path string) string { return filepath.Join(c.root, path) }

// release removes the control groups, and gives the user back. The rest of a jail has gone with its process.
func (c *cell) release() error {
	c.trees.close()
	return errors.Join(c.jail.clearCgroups(func(id uint32) bool { return id == c.user.id }), c.user.Close()) // last: nobody is to be the same user before
}

// take makes a copy of the mount that a path is on, relative to a descriptor, which may be the file itself.
func (t trees) take(fd, dir int, path string) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	tree, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return err
	}
	t[fd] = os.NewFile(uintptr(tree), fdPath(fd))
	return nil
}

// takeFile is take for a file that the caller has open.
func (t trees) takeFile(fd int, f *os.File) error {
	err := t.take(fd, int(f.Fd()), "")
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("bringing %s into the jail: %w: it is a file of a file system that is mounted nowhere, and this kernel has no way to (Linux 6.15 has)", f.Name(), errors.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("bringing %s into the jail: %w", f.Name(), err)
	}
	return nil
}

// takePath is take for a file that has a name.
func (t trees) takePath(fd int, path string) error {
	if err := t.take(fd, unix.AT_FDCWD, path); err != nil {
		return &os.PathError{Op: "bringing into the jail:", Path: path, Err: err}
	}
	return nil
}

// collect takes what a machine is to find in its jail, but for its disk.
func (c *cell) collect(config vmm.Config) error {
	if config.Boot != nil {
		err := c.takePath(fdKernel, config.Boot.Kernel)
		if err == nil && config.Boot.Initramfs != "" {
			err = c.takePath(fdInitramfs, config.Boot.Initramfs)
		}
		return err
	}
	if config.Uffd != "" {
		return c.takePath(fdUffd, config.Uffd)
	}
	return c.takeFile(fdMemory, config.Memory)
}

// spare is the room, in bytes, that a jail has beside what its machine may write: the program, the device state, pipes and sockets.
const spare = 256 << 20

// furnish makes the jail, in the thread that the jailer is started from. It returns the machine's folder.
func (c *cell) furnish(config vmm.Config) (*home, error) {
	options := fmt.Sprintf("mode=0755,size=%d,nr_inodes=4096", config.MemoryBytes+spare)
	if err := unix.Mount("spore", c.jail.room(), "tmpfs", unix.MS_NOSUID, options); err != nil {
		return nil, fmt.Errorf("mounting a file system for it: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.inside(fdPath(fdHome))), 0o755); err != nil {
		return nil, err
	}
	h, err := newHome(c.inside(fdPath(fdHome)), &c.who)
	if err != nil {
		return nil, err
	}
	h.remove = "" // it goes with the process
	if h.state, err = c.own(fdState, nil); err == nil {
		h.sink, err = c.own(fdSink, nil)
	}
	if err == nil && config.State != nil {
		var incoming *os.File
		if incoming, err = c.own(fdIncoming, config.State); err == nil {
			incoming.Close()
		}
	}
	if err == nil && config.Disk != nil {
		err = c.placeDisk(config.Disk, config.DiskTree)
	}
	for fd, tree := range c.trees {
		if err == nil {
			err = c.attach(tree, fd)
		}
	}
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// attach mounts a file where the jailed process looks for a descriptor.
func (c *cell) attach(tree *os.File, fd int) error {
	target := c.inside(fdPath(fd))
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		return err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting %s into the jail: %w", tree.Name(), err)
	}
	return nil
}

// placeDisk puts the disk where the jailed process looks for its descriptor. A file of a file system that is attached nowhere is copied as a mount once that is attached, which
// it need not stay.
func (c *cell) placeDisk(disk, tree *os.File) error {
	target := c.inside(fdPath(fdDisk))
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: disk.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		if err := unix.Mknod(target, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: target, Err: err}
		}
		return give(target, &c.who)
	}
	if tree == nil {
		return nil // it was collected
	}
	beside := c.inside("disk")
	if err := os.Mkdir(beside, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, beside, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting the disk into the jail: %w", err)
	}
	copied := trees{}
	defer copied.close()
	if err := copied.take(fdDisk, int(disk.Fd()), ""); err != nil {
		return fmt.Errorf("mounting the disk into the jail: %w", err)
	}
	if err := c.attach(copied[fdDisk], fdDisk); err != nil {
		return err
	}
	if err := unix.Unmount(beside, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("mounting the disk into the jail: %w", err)
	}
	return os.Remove(beside)
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
func (m *Machine) spawnJailed(ctx context.Context, j *jails, f facts, c vmm.Config) (err error) {
	if c.Disk != nil {
		defer c.Disk.Close()
	}
	cell, err := newCell(j, c, f.path)
	if err != nil {
		return err
	}
	defer cell.trees.close()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making a jail: %w", err), cell.release())
		}
	}()
	if c.Uffd != "" {
		if err := hostUserfaults().allowJailed(); err != nil {
			return err
		}
	}
	jailer, err := j.jailer(f.path)
	if err != nil {
		return err
	}
	if err := cell.collect(c); err != nil {
		return err
	}
	if plain, err := isPlainDisk(c); err != nil || plain {
		if err == nil {
			err = cell.takeFile(fdDisk, c.Disk)
		}
		if err != nil {
			return err
		}
	}
	cmd := exec.Command(jailer, j.arguments(cell.id, cell.who.Uid, f.path, netns(c), arguments(c.Name)[2:])...)
	m.Process, err = cage.Start(cmd, cage.Options{Name: "firecracker in its jail", Room: func() (err error) {
		m.home, err = cell.furnish(c)
		return err
	}})
	if err != nil {
		if m.home != nil {
			err = errors.Join(err, m.home.close())
		}
		return err
	}
	m.release = cell.release
	m.spawned()
	return nil
}

// isPlainDisk tells whether a disk is a file that has a name.
func isPlainDisk(c vmm.Config) (bool, error) {
	if c.Disk == nil || c.DiskTree != nil {
		return false, nil
	}
	info, err := c.Disk.Stat()
	if err != nil {
		return false, err
	}
	return info.Mode().IsRegular(), nil
}
