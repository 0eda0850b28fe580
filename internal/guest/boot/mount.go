package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where the cgroup hierarchy is mounted in the guest.
const CgroupRoot = "/sys/fs/cgroup"

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
	perm                 fs.FileMode // of the directory, where it has to be made
	optional             bool        // the guest works without it
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountKernel mounts the kernel's own file systems, which everything after needs.
func mountKernel() error {
	return mountAll([]mount{
		{source: "proc", target: "/proc", kind: "proc", flags: safe, perm: 0o555},
		{source: "sysfs", target: "/sys", kind: "sysfs", flags: safe, perm: 0o555},
		{source: "devtmpfs", target: "/dev", kind: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755", perm: 0o755},
	})
}

// mountUser mounts what user programs expect around them. An image is free to lack every one of these directories.
func mountUser() error {
	err := mountAll([]mount{
		{source: "devpts", target: "/dev/pts", kind: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=620,gid=5,ptmxmode=666", perm: 0o755},
		{source: "shm", target: "/dev/shm", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777", perm: 0o1777},
		{source: "mqueue", target: "/dev/mqueue", kind: "mqueue", flags: safe, perm: 0o1777, optional: true},
		{source: "cgroup2", target: CgroupRoot, kind: "cgroup2", flags: safe, data: "nsdelegate,memory_recursiveprot", perm: 0o755},
		// Together with the half of all memory that /dev/shm may take this leaves room for processes.
		{source: "run", target: "/run", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755,size=20%", perm: 0o755},
	})
	if err != nil {
		return err
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("linking %s: %w", link, err)
		}
	}
	if err := makeDir("/tmp", 0o1777); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err := makeDir("/run/lock", 0o1777); err != nil {
		return err
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		err := makeDir(m.target, m.perm)
		if err == nil {
			err = unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
		}
		if err != nil && !m.optional {
			return fmt.Errorf("mounting %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// makeDir makes a directory with exactly these permissions, whatever the umask says; an existing one is left as it is.
func makeDir(path string, perm fs.FileMode) error {
	// A link to a directory will do too: some images have /run as a link.
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil
	}
	if err := unix.Mkdir(path, uint32(perm)); err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	return unix.Chmod(path, uint32(perm))
}
