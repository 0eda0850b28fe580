package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// agentReserve is memory, of what is free after booting, that user processes can't have, so that a guest full of them still answers its host.
	agentReserve = 16 << 20

	// spareMemory is for processes that are started when all others have used up theirs, or are too many. What fills memory need not be a process that the kernel could end:
	// files of a tmpfs stay, and somebody has to be able to remove them.
	spareMemory = 16 << 20

	// leastRoom is what a small program needs to run at all.
	leastRoom = 4 << 20
)

// MemoryGuard keeps a guest usable whose processes want more memory than there is, or are more than it can bear (see crowd.go).
//
// At its limit the kernel takes back what it can read again, the code of running programs first of all, and as long as it finds some it sees no reason to
// end a process. In a guest without swap, full of data, programs then do little but read their own code from the disk, for minutes. The guard sees that they
// wait for memory while there is next to nothing to take back, and ends the largest as the kernel would have in the end.
type MemoryGuard struct {
	user, spare *memoryGroup // spare is nil in a guest too small for one
	root        string       // of the hierarchy

	kills atomic.Int64

	mu     sync.Mutex
	spared bool // there may be processes in spare
}

// memoryGroup is a control group with a limit.
type memoryGroup struct {
	dir   string
	fd    int // of dir, for as long as the machine lives
	limit int64
	kills int64 // by the kernel, when the group was last found to wait
	most  int64 // threads that it may have; 0: there is no limit

	refused   int64     // how many more it was not allowed, when that was last looked at
	refusedAt time.Time // when that was found to have grown
}

// NewMemoryGuard limits the memory of user processes by what is free now.
func NewMemoryGuard(user *UserCgroup) (*MemoryGuard, error) {
	memory, err := readMemory()
	if err != nil {
		return nil, err
	}
	g := &MemoryGuard{root: user.root}
	limit := memory.free - agentReserve - spareMemory
	if g.user, err = newMemoryGroup(user.path, limit); err != nil {
		return nil, err
	}
	if err := g.user.bound(maxUserProcesses(threadsMax)); err != nil {
		return nil, err
	}
	if limit <= 0 {
		return g, nil
	}
	if g.spare, err = newMemoryGroup(filepath.Join(user.root, "spare"), spareMemory); err != nil {
		return nil, err
	}
	return g, g.spare.bound(spareProcesses)
}

// newMemoryGroup makes a group unless it is there. No limit is set if it is not positive, or the kernel lacks the controller: the guest works without.
func newMemoryGroup(dir string, limit int64) (*memoryGroup, error) {
	name := filepath.Base(dir)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the control group %s: %w", name, err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the control group %s: %w", name, err)
	}
	if limit > 0 {
		if err := setLimit(dir, "memory.max", limit); err != nil {
			return nil, fmt.Errorf("limiting the memory of the control group %s: %w", name, err)
		}
	}
	return &memoryGroup{dir: dir, fd: fd, limit: limit}, nil
}

// room returns how much memory processes of the group could still have, if the kernel took back all that it can.
func (m *memoryGroup) room() (int64, error) {
	text, err := readAt(m.fd, "memory.current")
	if err != nil {
		return 0, err
	}
	used, err := parseCount(text)
	if err != nil {
		return 0, err
	}
	if room := m.limit - used; room >= max(leastRoom, mostCache) {
		return room, nil
	}
	cache, err := m.cache()
	return m.limit - used + cache, err
}

// cache returns how much of the group's memory the kernel can take back by forgetting what is on a disk.
func (m *memoryGroup) cache() (int64, error) {
	text, err := readAt(m.fd, "memory.stat")
	if err != nil {
		return 0, err
	}
	active, a := counter(text, "active_file")
	inactive, b := counter(text, "inactive_file")
	if !a || !b {
		return 0, errors.New("the memory statistics of a control group name no files")
	}
	return active + inactive, nil
}

// Group returns the control group in which the next process is to be born, as a descriptor of its directory: that of all user processes, unless it is so
// full, or crowded, that nothing could run in it.
func (g *MemoryGuard) Group() int {
	if g.spare == nil {
		return g.user.fd
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if room, err := g.user.room(); err == nil && room < leastRoom || g.user.crowded(time.Now()) {
		g.spared = true
		return g.spare.fd
	}
	if g.spared {
		g.spared = !g.rejoin()
	}
	return g.user.fd
}

// rejoin moves all processes out of the spare group, and reports whether it is empty.
func (g *MemoryGuard) rejoin() bool {
	pids, err := groupPIDs(g.spare.dir)
	for _, pid := range pids {
		_ = write(g.user.dir, "cgroup.procs", strconv.Itoa(pid)) // one that has ended can't be moved
	}
	return err == nil && len(pids) == 0
}

// Kills returns how many processes the guard has ended.
func (g *MemoryGuard) Kills() int64 { return g.kills.Load() }

// relieve ends the process whose end gives back most, of those in dir and below, and waits until it is gone.
func (g *MemoryGuard) relieve(dir string) error {
	pids, err := treePIDs(dir, g.root) // at the root is who must not end: the agent
	if err != nil {
		return err
	}
	slices.Sort(pids)
	worst, worstFD := 0, -1
	var score int64
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0) // first, so that what is ended is what was looked at
		if err != nil {
			continue
		}
		// Of equals the youngest goes: it came into a guest that did well without it.
		if n := oomScore(pid); n > 0 && n >= score {
			fd, worstFD, worst, score = worstFD, fd, pid, n
		}
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if worstFD < 0 {
		return nil
	}
	defer unix.Close(worstFD)
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", worst))
	g.kills.Add(1) // before anybody can see that it has ended
	if err := unix.PidfdSendSignal(worstFD, unix.SIGKILL, nil, 0); err != nil {
		g.kills.Add(-1)
		return nil // it has ended by itself
	}
	fmt.Fprintf(os.Stderr, "spore-agent: processes wait for memory, and none can be had: killed %d (%.16q)\n", worst, name)
	const limit = 10_000 // milliseconds; a process may be stuck in the kernel
	_, err = retryEINTR(func() (int, error) { return unix.Poll([]unix.PollFd{{Fd: int32(worstFD), Events: unix.POLLIN}}, limit) })
	return err
}

// oomScore returns the kernel's own opinion of how much ending a process would help; 0 is for those that it would not end.
func oomScore(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score", pid))
	if err != nil {
		return 0
	}
	n, err := parseCount(text)
	if err != nil {
		return 0
	}
	return n
}
