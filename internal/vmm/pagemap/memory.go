// Package pagemap asks the kernel where a VMM has mapped its guest's memory, and which pages of it have been written. It works with any VMM, patched by nobody.
//
// A page of a private file mapping that has become anonymous was written; of anonymous memory every page that is there was.
package pagemap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

// region is a piece of guest memory that is contiguous in the VMM too.
type region struct {
	addr   uint64 // in the VMM
	offset int64  // in guest memory, without the holes of the machine's address space
	size   int64
}

func (r region) end() uint64 { return r.addr + uint64(r.size) }

// Memory is the guest memory of a VMM's process.
type Memory struct {
	pid     int
	size    int64
	inode   string // of the file that is mapped; empty for anonymous memory
	regions []region
}

// Readable tells whether we may read the page map of a process.
func Readable(pid int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return fmt.Errorf("opening the VMM's page map: %w", err)
	}
	return f.Close()
}

// OfFile finds where process pid has privately mapped the first size bytes of file. It must be asked before the guest gives memory back: some VMMs map
// anonymous memory over what is given back.
func OfFile(pid int, file *os.File, size int64) (*Memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, fmt.Errorf("examining the memory file: %w", err)
	}
	m := &Memory{pid: pid, size: size, inode: strconv.FormatUint(st.Ino, 10)}
	areas, err := m.fileAreas()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(areas, func(a, b area) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	var found int64
	for _, a := range areas {
		if a.offset != found {
			continue // mapped a second time
		}
		if n := len(m.regions); n > 0 && m.regions[n-1].end() == a.start {
			m.regions[n-1].size += a.size() // split because of its permissions
		} else {
			m.regions = append(m.regions, region{addr: a.start, offset: a.offset, size: a.size()})
		}
		found += a.size()
	}
	if found != size {
		return nil, fmt.Errorf("the VMM has mapped %d bytes of guest memory, not %d", found, size)
	}
	return m, nil
}

// fileAreas lists the parts of memory that still are the file's.
func (m *Memory) fileAreas() ([]area, error) {
	areas, err := readAreas(m.pid, false)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(areas, func(a area) bool { return a.inode != m.inode || !strings.HasSuffix(a.perms, "p") }), nil
}

// OfUserfault finds the one anonymous region of size bytes whose missing pages a userfaultfd serves.
func OfUserfault(pid int, size int64) (*Memory, error) {
	areas, err := readAreas(pid, true)
	if err != nil {
		return nil, err
	}
	for _, a := range areas {
		if a.size() == size && strings.Contains(a.flags, " um ") {
			return &Memory{pid: pid, size: size, regions: []region{{addr: a.start, size: size}}}, nil
		}
	}
	return nil, fmt.Errorf("the VMM has no region of %d bytes that a userfaultfd serves", size)
}

// OfMark finds the anonymous region of size bytes whose guest memory holds mark at offset off. The kernel may have joined it with its neighbours.
func OfMark(pid int, size int64, mark []byte, off int64) (*Memory, error) {
	areas, err := readAreas(pid, false)
	if err != nil {
		return nil, err
	}
	p := make([]byte, len(mark))
	for _, a := range areas {
		if a.inode != "0" || a.size() < size || !strings.HasPrefix(a.perms, "rw") {
			continue
		}
		for _, addr := range []uint64{a.start, a.end - uint64(size)} {
			m := &Memory{pid: pid, size: size, regions: []region{{addr: addr, size: size}}}
			if m.Read(p, off) == nil && string(p) == string(mark) {
				return m, nil
			}
		}
	}
	return nil, fmt.Errorf("the VMM has no region of %d bytes that the guest was loaded into", size)
}

// Dirty returns the 4 KiB pages that differ, or may differ, from what the memory started as: the file, or zeros.
func (m *Memory) Dirty() (*block.Set, error) {
	set := new(block.Set)
	if m.inode != "" {
		if err := m.addReplaced(set); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.pid))
	if err != nil {
		return nil, fmt.Errorf("opening the VMM's page map: %w", err)
	}
	defer f.Close()
	for _, r := range m.regions {
		err := scanPages(f, r, set)
		if errors.Is(err, errNoScan) {
			err = readPages(f, r, set)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the VMM's page map: %w", err)
		}
	}
	return set, nil
}

// addReplaced adds what is mapped from the file no longer: given back by the guest, it reads as zeros and not as what the file holds.
func (m *Memory) addReplaced(set *block.Set) error {
	areas, err := m.fileAreas()
	if err != nil {
		return err
	}
	for _, r := range m.regions {
		next := r.addr // up to here it is told
		gap := func(to uint64) {
			if to > next {
				set.Add((r.offset+int64(next-r.addr))/pageSize, int64(to-next)/pageSize)
			}
		}
		for _, a := range areas {
			if a.end <= r.addr || a.start >= r.end() {
				continue
			}
			gap(max(a.start, r.addr))
			next = max(next, min(a.end, r.end()))
		}
		gap(r.end())
	}
	return nil
}

// Read fills p from guest memory at off.
func (m *Memory) Read(p []byte, off int64) error {
	if off < 0 || off > m.size || int64(len(p)) > m.size-off {
		return fmt.Errorf("reading guest memory: %d bytes at %d are outside of it", len(p), off)
	}
	for _, r := range m.regions {
		if len(p) == 0 {
			return nil
		}
		if off < r.offset || off >= r.offset+r.size {
			continue
		}
		n := min(int64(len(p)), r.offset+r.size-off)
		if err := readProcess(m.pid, p[:n], r.addr+uint64(off-r.offset)); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readProcess copies len(p) bytes at addr out of process pid.
func readProcess(pid int, p []byte, addr uint64) error {
	for len(p) > 0 {
		local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}
		n, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if err != nil {
			return fmt.Errorf("reading guest memory: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("reading guest memory: %w", io.ErrUnexpectedEOF)
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}
