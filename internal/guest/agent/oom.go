package agent

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// oomKills counts the processes that the kernel has ended for want of memory:
// in the control group of dirFD if it counts memory, else in the whole guest.
func oomKills(dirFD int) int64 {
	if dirFD > 0 {
		if data, err := readAt(dirFD, "memory.events"); err == nil {
			if n, ok := counter(data, "oom_kill"); ok {
				return n
			}
		}
	}
	data, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	n, _ := counter(data, "oom_kill")
	return n
}

// readAt reads a small file of the directory that dirFD is open on.
func readAt(dirFD int, name string) ([]byte, error) {
	fd, err := unix.Openat(dirFD, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// counter finds a "name number" line.
func counter(data []byte, name string) (int64, bool) {
	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if ok && string(key) == name {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// parseCount reads a file that holds a number and nothing else.
func parseCount(data []byte) (int64, error) {
	return strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
}
