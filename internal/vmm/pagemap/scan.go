package pagemap

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

const pageSize = 4096

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

// scanPages adds the written pages of a region to set. It lets the kernel walk the page tables and skip what was never touched.
func scanPages(pagemap *os.File, r region, set *block.Set) error {
	regions := make([]scanRegion, 1024)
	// The kernel is told their address as a number: they must not be on our stack, which may move.
	var pinned runtime.Pinner
	pinned.Pin(&regions[0])
	defer pinned.Unpin()
	arg := scanArg{
		start: r.addr, end: r.end(),
		vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: uint64(len(regions)),
		categoryInverted:  pageIsFile,
		categoryMask:      pageIsFile, // required: not a page of the file …
		categoryAnyofMask: pageIsPresent | pageIsSwapped,
		returnMask:        pageIsPresent | pageIsSwapped,
	}
	arg.size = uint64(unsafe.Sizeof(arg))
	for arg.start < r.end() {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.ENOTTY, unix.EINVAL:
			return errNoScan
		default:
			return errno
		}
		for _, found := range regions[:n] {
			set.Add((r.offset+int64(found.start-r.addr))/pageSize, int64(found.end-found.start)/pageSize)
		}
		arg.start = arg.walkEnd
	}
	return nil
}

// readPages does the same on older kernels, with one 8-byte entry a page.
func readPages(pagemap io.ReaderAt, r region, set *block.Set) error {
	buf := make([]byte, 256<<10)
	total := r.size / pageSize
	for page := int64(0); page < total; {
		n := min(total-page, int64(len(buf)/8))
		if _, err := pagemap.ReadAt(buf[:n*8], (int64(r.addr)/pageSize+page)*8); err != nil {
			return err
		}
		for i := range n {
			entry := binary.NativeEndian.Uint64(buf[i*8:])
			if entry&(pmPresent|pmSwapped) != 0 && entry&pmFile == 0 {
				set.Add(r.offset/pageSize+page+i, 1)
			}
		}
		page += n
	}
	return nil
}
