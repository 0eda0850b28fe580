package boot

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newRoot      = "/newroot"
	rootDeadline = 10 * time.Second // a disk that the VMM has is there at once; this is for a starved host
)

// switchRoot mounts the root file system, takes the kernel's file systems along and makes it the root of this process and all to come.
func switchRoot(a Args) error {
	if err := waitFor(a.Root, rootDeadline); err != nil {
		return fmt.Errorf("waiting for the root disk %s: %w", a.Root, err)
	}
	tune(tuning(a.Root))
	if err := makeDir(newRoot, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOATIME) // reading must not dirty the disk
	if a.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := mountRoot(a, flags); err != nil {
		return fmt.Errorf("mounting %s (%s) as the root file system: %w", a.Root, a.RootType, err)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := makeDir(newRoot+dir, 0o755); err != nil {
			return fmt.Errorf("the root file system lacks a directory that can't be made: %w", err)
		}
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	// The running program stays alive without its name. Nothing else is left in the initramfs but empty directories.
	if err := os.Remove("/init"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dropping the initramfs: %w", err)
	}
	if err := os.Chdir(newRoot); err != nil {
		return fmt.Errorf("entering the root file system: %w", err)
	}
	// pivot_root does not work on an initramfs, so the new root is moved over the old one.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root file system into place: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	return os.Chdir("/")
}

// mountRoot mounts the root file system. It has ext4 do nothing on its own: some seconds after it was mounted it would fill what is unused of its inode
// tables with zeros and read all its bitmaps, hence again in every fork of a machine that was frozen before that. That is work for its CPU, blocks of zeros
// for its disk, and blocks to fetch where that is far.
func mountRoot(a Args, flags uintptr) error {
	options := ""
	if a.RootType == "ext4" {
		options = "noinit_itable,no_prefetch_block_bitmaps"
	}
	err := unix.Mount(a.Root, newRoot, a.RootType, flags, options)
	if err == unix.EINVAL && options != "" {
		// Linux before 5.17 reads no bitmaps ahead, and does not know how to be kept from it.
		err = unix.Mount(a.Root, newRoot, a.RootType, flags, "noinit_itable")
	}
	return err
}

// waitFor returns when path exists.
func waitFor(path string, limit time.Duration) error {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if time.Since(start) > limit {
			return fmt.Errorf("not there after %s", limit)
		}
	}
}
