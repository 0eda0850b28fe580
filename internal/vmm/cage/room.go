package cage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CheckRoom says why no process can have mounts and a network of its own here; nil: it can. That takes root, and a root directory that is a mount point. The root of a
// chroot often is none, and then mounts can't be kept apart from within it.
func CheckRoom() error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root")
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, 0, &st); err != nil {
		return fmt.Errorf("looking at the root directory: %w", err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return errors.New("the root directory is that of a chroot, which no file system is mounted at")
	}
	return nil
}

// enterRoom gives this thread mounts of its own, and a network with nothing in it, has furnish mount what the process is to find there, and returns how the thread gets
// back to the mounts that it had. What is mounted meanwhile is seen by nobody else, and is gone with the last process that has it, however that ends.
func enterRoom(furnish func() error) (leave func() error, err error) {
	before, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making room for the VMM: %w", err)
	}
	leave = func() error {
		defer unix.Close(before)
		// Else the thread, which lives as long as the process, would keep all that the host has mounted now.
		if err := unix.Setns(before, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("leaving the VMM's room: %w", err)
		}
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		unix.Close(before)
		return nil, fmt.Errorf("making room for the VMM: mounts and a network of its own: %w", err)
	}
	// What is mounted here must not be mounted there too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		unix.Close(before)
		return nil, fmt.Errorf("making room for the VMM: keeping its mounts apart: %w", err)
	}
	if err := furnish(); err != nil {
		unix.Close(before)
		return nil, err
	}
	return leave, nil
}
