package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// A program that forks without end takes all processes that the kernel allows, and most of the memory with them: then nobody can start anything, and the
// agent can't even have a thread. So user processes have a limit, as containers have where their owners think of it, and a few more may be started beside
// them to put an end to it.
const (
	userShare      = 4  // threads of user processes are one in so many, at most, of those that the kernel allows
	spareProcesses = 64 // and so many there may be in the spare group

	calmProcesses = 16          // are no crowd, whatever was before
	crowdMemory   = time.Minute // is how long after a process was refused there may be a crowd again at any moment
)

// threadsMax tells how many threads the kernel allows. It follows from the guest's memory: the kernel's stacks of so many would fill an eighth of that.
const threadsMax = "/proc/sys/kernel/threads-max"

// maxUserProcesses is how many threads user processes may have; 0 if the kernel does not say what it allows.
func maxUserProcesses(file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := parseCount(text)
	if err != nil {
		return 0
	}
	return n / userShare
}

// bound limits how many threads the group may have. No limit is set if it is not positive, or the kernel lacks the controller: the guest works without.
func (m *memoryGroup) bound(limit int64) error {
	if limit <= 0 {
		return nil
	}
	if err := setLimit(m.dir, "pids.max", limit); err != nil {
		return fmt.Errorf("limiting the processes of the control group %s: %w", filepath.Base(m.dir), err)
	}
	m.most = limit
	return nil
}

// setLimit writes one of a control group's limits. Where the kernel lacks the controller there is no such file, and none can be made.
func setLimit(dir, file string, limit int64) error {
	err := write(dir, file, strconv.FormatInt(limit, 10))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	return err
}

// crowded tells whether the group has so many threads that another process could hardly start any, or may have at any moment: how many a program that forks
// without end has goes up and down, since most programs end where they may not fork.
func (m *memoryGroup) crowded(now time.Time) bool {
	if m.most == 0 {
		return false
	}
	if events, err := readAt(m.fd, "pids.events"); err == nil {
		if n, ok := counter(events, "max"); ok && n != m.refused {
			m.refused, m.refusedAt = n, now
		}
	}
	text, err := readAt(m.fd, "pids.current")
	if err != nil {
		return false
	}
	n, err := parseCount(text)
	return err == nil && (n >= m.most-m.most/8 || n > calmProcesses && m.refused > 0 && now.Sub(m.refusedAt) < crowdMemory)
}
