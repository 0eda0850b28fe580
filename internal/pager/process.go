package pager

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is another process, known by a descriptor that never comes to mean
// another one.
type process struct {
	pid int
	uid int

	mu sync.Mutex
	fd int // -1 once closed
}

// peerOf returns the process that connected to a unix socket. With an error about
// its descriptor it returns one that can't be killed.
func peerOf(socket int) (*process, error) {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("asking who has connected: %w", err)
	}
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.5; the process may have ended since, and its number may be another's
		fd, err = unix.PidfdOpen(int(cred.Pid), 0)
	}
	p := &process{pid: int(cred.Pid), uid: int(cred.Uid), fd: fd}
	if err != nil {
		p.fd = -1
		return p, fmt.Errorf("getting hold of process %d, which has connected: %w", cred.Pid, err)
	}
	return p, nil
}

// openProcess returns the process of a number that started at a time, or nil when
// that is no more.
func openProcess(pid int, started uint64) (*process, error) {
	if pid <= 1 || started == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("getting hold of process %d: %w", pid, err)
	}
	if now, err := startTime(pid); err != nil || now != started {
		return nil, unix.Close(fd)
	}
	return &process{pid: pid, fd: fd}, nil
}

// kill ends the process. One that has ended is no error.
func (p *process) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d: %w", p.pid, err)
	}
	return nil
}

// wait waits for the end of the process, and tells whether it has come. It takes no
// descriptor: there may be none.
func (p *process) wait(patience time.Duration) bool {
	pause := 100 * time.Microsecond
	for deadline := time.Now().Add(patience); ; pause = min(2*pause, 10*time.Millisecond) {
		if p.over() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
}

// over tells whether the process has ended. One that was closed has: others have seen it.
func (p *process) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return true
	}
	ended, err := readable(p.fd)
	return err == nil && ended
}

// started returns when the process started, in clock ticks since the host's boot; 0
// if it has ended.
func (p *process) started() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, err := startTime(p.pid)
	if err != nil || p.fd < 0 || unix.PidfdSendSignal(p.fd, 0, nil, 0) != nil {
		return 0 // or else the time might be that of another process with its number
	}
	return at
}

func (p *process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
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
