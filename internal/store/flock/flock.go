// Package flock takes advisory locks on open files and directories (flock(2)).
//
// Such a lock belongs to the open file, not to the process: two opens of one
// file in one process exclude each other, and the kernel drops the lock when the
// last descriptor is closed, however its owner died. That makes "nobody holds
// the lock" the proof that whoever made a thing is gone.
package flock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Mode says whether others may hold the lock too.
type Mode int

const (
	// Shared locks exclude only Exclusive ones.
	Shared Mode = unix.LOCK_SH
	// Exclusive locks exclude every other.
	Exclusive Mode = unix.LOCK_EX
)

// ErrHeld is returned by Try when another open file holds a lock in the way.
var ErrHeld = errors.New("locked by another user")

// Try takes the lock if it is free, else returns ErrHeld at once. A lock that f
// holds already is converted.
func Try(f *os.File, m Mode) error {
	for {
		err := unix.Flock(int(f.Fd()), int(m)|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrHeld
		default:
			return &os.PathError{Op: "locking", Path: f.Name(), Err: err}
		}
	}
}

// Lock waits for the lock until ctx ends. It asks again at growing intervals (at
// most 20 ms) because a thread that blocks in flock(2) could not be cancelled.
func Lock(ctx context.Context, f *os.File, m Mode) error {
	wait := time.Millisecond
	for {
		err := Try(f, m)
		if !errors.Is(err, ErrHeld) {
			return err
		}
		select {
		case <-ctx.Done():
			return &os.PathError{Op: "waiting for the lock on", Path: f.Name(), Err: context.Cause(ctx)}
		case <-time.After(wait):
		}
		wait = min(2*wait, 20*time.Millisecond)
	}
}

// Current reports whether path still names the open file f. After a lock was
// waited for it may not: the previous holder may have removed or replaced it.
func Current(f *os.File, path string) (bool, error) {
	var held, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &held); err != nil {
		return false, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if err := unix.Lstat(path, &named); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return held.Dev == named.Dev && held.Ino == named.Ino, nil
}
