package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// workDir is a folder that a live process works in. It is locked for as long as its owner lives; one whose lock is free belongs to nobody, and is removed
// by the next sweep.
type workDir struct {
	path string
	lock *os.File // the folder itself, so that there is no moment in which it is there and can't be told to be owned
}

// vmmName is the file in a machine's folder that tells its process: "PID START-TIME". The time tells a process from a later one with the same number.
const vmmName = "vmm"

// newWorkDir makes a folder in root. A sweep may take it for abandoned before it is locked; then we start again.
func newWorkDir(root, prefix string) (*workDir, error) {
	for {
		path, err := os.MkdirTemp(root, prefix)
		if err != nil {
			return nil, fmt.Errorf("making a working folder: %w", err)
		}
		lock, err := os.OpenFile(path, unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking a working folder: %w", err), os.Remove(path))
		}
		owned := false
		if err = flock.Try(lock, flock.Exclusive); err == nil {
			owned, err = flock.Current(lock, path)
		}
		if owned {
			return &workDir{path: path, lock: lock}, nil
		}
		lock.Close()
		if err != nil && !errors.Is(err, flock.ErrHeld) {
			return nil, errors.Join(fmt.Errorf("locking a working folder: %w", err), os.Remove(path))
		}
	}
}

// newRunDir makes the folder of one live machine.
func newRunDir(root string) (*workDir, error) {
	d, err := newWorkDir(root, "")
	if err != nil {
		return nil, err
	}
	if longest := len(filepath.Join(d.path, "agent")); longest >= 108 {
		err := fmt.Errorf("the run folder %s is too deep: a socket's path has at most 107 bytes, this would have %d; set XDG_RUNTIME_DIR to a shorter one", root, longest)
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

// record writes down which process runs the machine, for the sweep after our own sudden death, and what others are told of it.
func (d *workDir) record(pid int, about Running) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.path, vmmName), fmt.Appendf(nil, "%d %d\n", pid, started), 0o600); err != nil {
		return err
	}
	text, err := json.Marshal(about)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.path, aboutName), text, 0o600)
}

// readVMM reads which process runs a machine, and when that started: process 0 if there is no record, or it is torn: its owner died while writing, and its VMM
// died with it.
func readVMM(record string) (pid int, started uint64, err error) {
	text, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(string(text), "%d %d", &pid, &started); err != nil || pid <= 1 {
		return 0, 0, nil
	}
	return pid, started, nil
}

// remove gives up the lock last: nobody is to sweep alongside.
func (d *workDir) remove() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}

// sweep ends machines and removes folders that dead owners have left in root. abandoned, unless it is nil, is shown each folder before it goes.
func sweep(root string, log *slog.Logger, abandoned func(path string) error) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := sweepOne(filepath.Join(root, e.Name()), log, abandoned); err != nil {
			return err
		}
	}
	return nil
}

func sweepOne(path string, log *slog.Logger, abandoned func(path string) error) error {
	lock, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its owner has just removed it
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if !isOurs(lock) {
		return nil
	}
	if err := flock.Try(lock, flock.Exclusive); errors.Is(err, flock.ErrHeld) {
		return nil
	} else if err != nil {
		return err
	}
	log.Info("removing what a dead process left behind", "folder", path)
	if abandoned != nil {
		if err := abandoned(path); err != nil { // which is no reason not to start
			log.Warn("what a dead process left running can't be ended", "folder", path, "error", err)
		}
	}
	return errors.Join(endOrphan(filepath.Join(path, vmmName)), os.RemoveAll(path))
}

// isOurs tells whether a folder belongs to whom we run as. Others may be able to make some in a run folder, and what they write there must not decide which process is ended.
func isOurs(folder *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(folder.Fd()), &st) == nil && int(st.Uid) == os.Geteuid()
}

// sweepLocks removes lock files (see lockFile) that nobody holds.
func sweepLocks(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.OpenFile(filepath.Join(root, e.Name()), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // removed by its holder
		}
		// Only the lock on the file that has the name is worth something: it may have been removed, and made again, since it was opened.
		if flock.Try(f, flock.Exclusive) == nil {
			if current, _ := flock.Current(f, f.Name()); current {
				err = os.Remove(f.Name())
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// endOrphan kills the recorded VMM if it still runs.
func endOrphan(record string) error {
	pid, started, err := readVMM(record)
	if err != nil || pid == 0 {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(pidfd)
	if now, err := startTime(pid); err != nil || now != started {
		return nil // another process by now
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending the orphaned VMM %d: %w", pid, err)
	}
	return nil
}

// startTime returns when a process started, in clock ticks since the host's boot.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, field 2, is in parentheses and may hold anything; field 22 is the start time.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: unexpected stat format", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
