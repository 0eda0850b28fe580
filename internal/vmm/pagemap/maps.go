package pagemap

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// area is a line of /proc/PID/maps: a range of addresses that is mapped in one way.
type area struct {
	start, end uint64
	offset     int64  // in the file
	inode      string // "0": no file
	perms      string
	flags      string // the VmFlags of /proc/PID/smaps; empty where only maps was read
}

func (a area) size() int64 { return int64(a.end - a.start) }

// readAreas lists what a process has mapped, by ascending address. With flags it takes the kernel much longer: it walks the page tables.
func readAreas(pid int, flags bool) ([]area, error) {
	name := "maps"
	if flags {
		name = "smaps"
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, fmt.Errorf("reading the VMM's memory map: %w", err)
	}
	defer f.Close()
	var out []area
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && len(out) > 0 {
			out[len(out)-1].flags = text + " "
			continue
		}
		if a, ok := parseArea(lines.Text()); ok {
			out = append(out, a)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the VMM's memory map: %w", err)
	}
	return out, nil
}

// parseArea reads "start-end perms offset device inode path".
func parseArea(line string) (area, bool) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return area{}, false
	}
	lo, hi, ok := strings.Cut(fields[0], "-")
	start, err1 := strconv.ParseUint(lo, 16, 64)
	end, err2 := strconv.ParseUint(hi, 16, 64)
	offset, err3 := strconv.ParseUint(fields[2], 16, 63)
	if !ok || err1 != nil || err2 != nil || err3 != nil || end <= start {
		return area{}, false
	}
	return area{start: start, end: end, offset: int64(offset), inode: fields[4], perms: fields[1]}, true
}
