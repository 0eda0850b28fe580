package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// pressureTrigger asks the kernel to tell when processes have waited for memory for 1.2 seconds out of 3, in microseconds. It watches only while some wait.
	pressureTrigger = "some 1200000 3000000"

	// A group is starved if what is free and what the kernel can take back are less than this share of its memory, and less than mostCache: else the waiting is that for a disk
	// of somebody who reads more than fits, and will come to an end.
	cacheShare = 16
	mostCache  = 64 << 20
)

// pressure is memory that is watched.
type pressure struct {
	dir     string // of the processes in question
	file    string // the kernel's account of who waited
	starved func() (bool, error)
}

// Watch ends processes while others starve. It returns only if it can't watch: on a kernel that does not account for waiting that is at once, and no error.
func (g *MemoryGuard) Watch() error {
	watched := []pressure{{g.root, "/proc/pressure/memory", starved}}
	for _, m := range []*memoryGroup{g.user, g.spare} {
		if m != nil && m.limit > 0 {
			watched = append(watched, pressure{m.dir, filepath.Join(m.dir, "memory.pressure"), m.starved})
		}
	}
	fds := make([]unix.PollFd, len(watched))
	for i, w := range watched {
		fd, err := openTrigger(w.file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watching who waits for memory: %w", err)
		}
		defer unix.Close(fd)
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLPRI}
	}
	for {
		if _, err := retryEINTR(func() (int, error) { return unix.Poll(fds, -1) }); err != nil {
			return fmt.Errorf("watching who waits for memory: %w", err)
		}
		for i, w := range watched {
			if fds[i].Revents&unix.POLLERR != 0 {
				fds[i].Fd = -1 // a user program has removed the group
			}
			if fds[i].Revents&unix.POLLPRI == 0 {
				continue
			}
			if err := g.answer(w); err != nil {
				fmt.Fprintf(os.Stderr, "spore-agent: %v\n", err)
			}
		}
	}
}

// answer looks into a report of waiting.
func (g *MemoryGuard) answer(w pressure) error {
	starved, err := w.starved()
	if err == nil && starved {
		err = g.relieve(w.dir)
	}
	if err != nil {
		return fmt.Errorf("relieving processes that wait for memory: %w", err)
	}
	return nil
}

// openTrigger opens a file of pressure so that it becomes readable, out of band, at each report.
func openTrigger(file string) (int, error) {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if _, err := unix.Write(fd, append([]byte(pressureTrigger), 0)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (m *memoryGroup) starved() (bool, error) {
	// The kernel may have ended somebody meanwhile; then there is room, or will be as soon as that one is gone.
	kills := oomKills(m.fd)
	if kills != m.kills {
		m.kills = kills
		return false, nil
	}
	room, err := m.room()
	return room < min(m.limit/cacheShare, mostCache), err
}

// starved is about the whole guest, for processes in groups that user programs have made beside those with a limit.
func starved() (bool, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false, err
	}
	return starvedBy(text)
}

func starvedBy(meminfo []byte) (bool, error) {
	text := bytes.ReplaceAll(meminfo, []byte(" kB"), nil)
	total, a := counter(text, "MemTotal:")
	available, b := counter(text, "MemAvailable:")
	if !a || !b {
		return false, errors.New("the kernel does not say how much memory is available")
	}
	return available<<10 < min(total<<10/(2*cacheShare), mostCache), nil
}
