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
	if err := makeDir(newRoot, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOATIME) // reading must not dirty the disk
	if a.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(a.Root, newRoot, a.RootType, flags, ""); err != nil {
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
