package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// Running is a live machine of a run folder, whichever process it belongs to.
type Running struct {
	ID          uuid.UUID
	Snapshot    uuid.UUID // that it was woken from, or whose disk it booted on
	Image       string    // that all began with; empty if not known
	CPUs        int
	MemoryBytes int64
	DiskBytes   int64
	Net         string
	Started     time.Time
	Daemon      bool // it is one of a daemon's, which tells more of it
	Owner       int  // process that it belongs to and ends with

	OwnerStarted uint64 // tells that process from a later one with the same number
}

// aboutName is the file in a machine's folder that tells others of it: a Running, as JSON.
const aboutName = "about"

// maxAbout bounds such a file, in bytes.
const maxAbout = 64 << 10

// about is what others are told of the sandbox.
func (s *Sandbox) about() (Running, error) {
	me := os.Getpid()
	started, err := startTime(me)
	return Running{
		ID: s.id, Snapshot: s.parent.ID(), Image: s.meta.Image.Ref, CPUs: s.meta.VCPUs, MemoryBytes: s.meta.MemoryBytes, DiskBytes: s.meta.DiskBytes, Net: s.meta.Net,
		Started: time.Now().UTC(), Daemon: s.host.Daemon, Owner: me, OwnerStarted: started,
	}, err
}

// ListRunning returns the live machines of a run folder, oldest first. What dead processes have left there is none of them, and stays as it is.
func ListRunning(runDir string) ([]Running, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for machines: %w", err)
	}
	var all []Running
	for _, e := range entries {
		if r, ok := readRunning(filepath.Join(runDir, e.Name())); ok {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Running) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// readRunning tells of the machine in a folder, if there is one and it lives.
func readRunning(dir string) (r Running, ok bool) {
	// Only folders that have this file are looked into further: one that is just being made may not have been locked by its owner yet.
	about, err := os.OpenFile(filepath.Join(dir, aboutName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return r, false
	}
	defer about.Close()
	if err := json.NewDecoder(io.LimitReader(about, maxAbout)).Decode(&r); err != nil || r.Owner <= 1 {
		return r, false // torn: it is being written, or its owner died over it
	}
	lock, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return r, false
	}
	defer lock.Close()
	if !isOurs(lock) {
		return r, false
	}
	if err := flock.Try(lock, flock.Shared); !errors.Is(err, flock.ErrHeld) {
		return r, false // nobody's
	}
	pid, started, err := readVMM(filepath.Join(dir, vmmName))
	if err != nil || pid == 0 {
		return r, false
	}
	now, err := startTime(pid)
	return r, err == nil && now == started
}

// End asks the process that the machine belongs to for its end, as an interrupt would, and waits for it.
func (r Running) End(ctx context.Context) error {
	fd, err := unix.PidfdOpen(r.Owner, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	}
	if err != nil {
		return fmt.Errorf("finding process %d, which sandbox %s belongs to: %w", r.Owner, r.ID, err)
	}
	defer unix.Close(fd)
	if now, err := startTime(r.Owner); err != nil || now != r.OwnerStarted {
		return nil // it has ended, and the number is another's
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("ending process %d, which sandbox %s belongs to: %w", r.Owner, r.ID, err)
	}
	for {
		const look = 100 // milliseconds, after which somebody may have stopped waiting
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, look)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for the end of process %d: %w", r.Owner, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}
