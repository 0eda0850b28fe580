package qemu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

const pageSize = 4096

// mapping is the range of addresses at which a VMM has mapped the guest's RAM.
type mapping struct {
	start, end uint64
}

// findMapping looks up where process pid has mapped the given file over size bytes.
func findMapping(pid int, file *os.File, size int64) (mapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return mapping{}, fmt.Errorf("examining the memory file: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return mapping{}, fmt.Errorf("reading the VMM's memory map: %w", err)
	}
	defer f.Close()
	want := strconv.FormatUint(st.Ino, 10)
	var found mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// start-end perms offset dev inode path; one mapping may be split into neighbours with different permissions
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[4] != want {
			continue
		}
		lo, hi, ok := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(lo, 16, 64)
		end, err2 := strconv.ParseUint(hi, 16, 64)
		offset, err3 := strconv.ParseUint(fields[2], 16, 64)
		if !ok || err1 != nil || err2 != nil || err3 != nil {
			continue
		}
		if offset == 0 && found.end == 0 {
			found.start = start
		} else if found.end != start {
			continue
		}
		found.end = end
	}
	if err := lines.Err(); err != nil {
		return mapping{}, fmt.Errorf("reading the VMM's memory map: %w", err)
	}
	if found.end-found.start != uint64(size) {
		return mapping{}, fmt.Errorf("the VMM has mapped %d bytes of guest memory, not %d", found.end-found.start, size)
	}
	return found, nil
}

// Bits of a page map entry, and the PAGEMAP_SCAN interface of Linux 6.7 (include/uapi/linux/fs.h).
const (
	pmPresent = 1 << 63
	pmSwapped = 1 << 62
	pmFile    = 1 << 61

	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4

	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
)

type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
}

type scanRegion struct {
	start, end, categories uint64
}

// errNoScan says that the kernel is older than PAGEMAP_SCAN.
var errNoScan = errors.New("the kernel has no PAGEMAP_SCAN")

// dirtyPages returns the pages of a private file mapping that have been written: those in memory or swap that do not belong to the file.
func dirtyPages(pid int, m mapping) (*block.Set, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, fmt.Errorf("opening the VMM's page map: %w", err)
	}
	defer f.Close()
	set, err := scanPages(f, m)
	if errors.Is(err, errNoScan) {
		set, err = readPages(f, m)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the VMM's page map: %w", err)
	}
	return set, nil
}

// scanPages lets the kernel walk the page tables and skip what was never touched.
func scanPages(pagemap *os.File, m mapping) (*block.Set, error) {
	set := new(block.Set)
	regions := make([]scanRegion, 1024)
	arg := scanArg{
		start: m.start, end: m.end,
		vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: uint64(len(regions)),
		categoryInverted:  pageIsFile,
		categoryMask:      pageIsFile, // required: not a page of the file …
		categoryAnyofMask: pageIsPresent | pageIsSwapped,
		returnMask:        pageIsPresent | pageIsSwapped,
	}
	arg.size = uint64(unsafe.Sizeof(arg))
	for arg.start < m.end {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.ENOTTY, unix.EINVAL:
			return nil, errNoScan
		default:
			return nil, errno
		}
		for _, r := range regions[:n] {
			set.Add(int64(r.start-m.start)/pageSize, int64(r.end-r.start)/pageSize)
		}
		arg.start = arg.walkEnd
	}
	return set, nil
}

// readPages does the same on older kernels, with one 8-byte entry a page.
func readPages(pagemap io.ReaderAt, m mapping) (*block.Set, error) {
	set := new(block.Set)
	buf := make([]byte, 256<<10)
	total := int64(m.end-m.start) / pageSize
	for page := int64(0); page < total; {
		n := min(total-page, int64(len(buf)/8))
		if _, err := pagemap.ReadAt(buf[:n*8], (int64(m.start)/pageSize+page)*8); err != nil {
			return nil, err
		}
		for i := range n {
			entry := binary.NativeEndian.Uint64(buf[i*8:])
			if entry&(pmPresent|pmSwapped) != 0 && entry&pmFile == 0 {
				set.Add(page+i, 1)
			}
		}
		page += n
	}
	return set, nil
}

// readMemory copies len(p) bytes at addr out of process pid.
func readMemory(pid int, p []byte, addr uint64) error {
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
