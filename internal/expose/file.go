package expose

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// unnamedFile makes a file in dir that only its descriptor refers to: the kernel removes it when the process ends, in whatever way.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(dir, unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	})
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(overlay)"), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "creating a file in", Path: dir, Err: err}
	}
	// Some file systems (overlayfs of old kernels, NFS, FUSE) have no O_TMPFILE.
	file, err := os.CreateTemp(dir, ".overlay-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, fmt.Errorf("removing the name of a temporary file: %w", err)
	}
	return file, nil
}

// punch gives the space of a range back; it reads as zeros afterwards.
func punch(file *os.File, offset, length int64) error {
	return allocate(file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
}

// reserve makes sure that writes to a range find space; its content stays as it is. File systems that can't promise that are taken as they are.
func reserve(file *os.File, offset, length int64) error {
	if err := allocate(file, unix.FALLOC_FL_KEEP_SIZE, offset, length); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

func allocate(file *os.File, mode uint32, offset, length int64) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Fallocate(int(file.Fd()), mode, offset, length)
	})
	return err
}

// ignoringEINTR repeats a system call that a signal (Go's own preemption among them) has interrupted.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
