package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stamp is what the kernel says of a file. As long as it stays the same, nobody
// changed the file.
type stamp struct {
	// Boot is the boot id of the host: the file was not waited for to reach the
	// disk, so after a power cut it might be sealed and yet lack data.
	Boot  string `json:"boot"`
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`  // bytes
	MTime int64  `json:"mtime"` // nanoseconds since 1970
	CTime int64  `json:"ctime"` // nanoseconds since 1970
}

func stampOf(f *os.File) (stamp, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return stamp{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return stamp{
		Boot:  strings.TrimSpace(string(boot)),
		Dev:   uint64(st.Dev),
		Inode: st.Ino,
		Size:  st.Size,
		MTime: unix.TimespecToNsec(st.Mtim),
		CTime: unix.TimespecToNsec(st.Ctim),
	}, nil
}

// readStamp reads a seal. One that can't be read is none.
func readStamp(path string) (stamp, bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return stamp{}, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return stamp{}, false
	}
	var s stamp
	return s, json.Unmarshal(data, &s) == nil
}

// seal records that the file is good as it is.
func (c *flatCache) seal(f *os.File, key string) error {
	s, err := settle(f)
	if err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the seal: %w", err)
	}
	fresh := c.path(key, sealSuffix+newInfix)
	err = os.WriteFile(fresh, append(data, '\n'), 0o600)
	if err == nil {
		err = os.Rename(fresh, c.path(key, sealSuffix))
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

// settle returns the file's stamp once the clock that change times are taken from
// (which ticks in milliseconds) is past it: a change made from now on can't have
// the same time.
func settle(f *os.File) (stamp, error) {
	for {
		s, err := stampOf(f)
		if err != nil {
			return stamp{}, err
		}
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
			return stamp{}, os.NewSyscallError("clock_gettime", err)
		}
		behind := unix.TimespecToNsec(now) - s.CTime
		if behind > 0 {
			return s, nil
		}
		if behind < -int64(time.Second) {
			// The clock was set back. Any change counts as one then, and has another time.
			return s, nil
		}
		time.Sleep(time.Millisecond)
	}
}
