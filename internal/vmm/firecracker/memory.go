package firecracker

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/pagemap"
)

// lowMemory is how much memory, in bytes, lies below the hole that x86 machines have under 4 GiB. It is smallest in the versions from 1.13 on.
const lowMemory = 3 << 30

// splits tells whether a machine's memory may be in several pieces.
func splits(c vmm.Config) bool { return c.Arch == "amd64" && c.MemoryBytes > lowMemory }

// guestMemory is how the memory of a machine is read, and how it is known what was written.
type guestMemory interface {
	Dirty() (*block.Set, error)
	Read(p []byte, off int64) error
	saved()   // Firecracker has written the pages that it knows to be dirty to the sink
	resumed() // the guest runs again
	Close() error
}

// mapped is memory that the kernel tells about.
type mapped struct {
	*pagemap.Memory
	sink *os.File
}

// saved throws away what Firecracker wrote.
func (m mapped) saved()     { m.sink.Truncate(0) }
func (mapped) resumed()     {}
func (mapped) Close() error { return nil }

// tracked is memory that only Firecracker itself can tell about, when it makes a snapshot: each adds the pages written since the last to the sink, which is
// sparse, so that its data is what was written since the start.
type tracked struct {
	sink *os.File // the machine's
	base *os.File // what the memory was at the start; nil: zeros
	lazy bool     // or what somebody else serves, which can't be read here
	size int64
	good bool // the sink is up to date
}

func newTracked(sink *os.File, c vmm.Config) (*tracked, error) {
	t := &tracked{sink: sink, size: c.MemoryBytes, lazy: c.Uffd != ""}
	if c.Boot == nil && c.Uffd == "" {
		fd, err := unix.FcntlInt(c.Memory.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("keeping the memory file: %w", err)
		}
		t.base = os.NewFile(uintptr(fd), c.Memory.Name())
	}
	return t, nil
}

var errNotSaved = errors.New("this machine's memory can only be read when it is stopped and its state has been saved: the kernel lets nobody read its page map")

func (t *tracked) saved()   { t.good = true }
func (t *tracked) resumed() { t.good = false }

// Dirty returns the pages that have data in the sink.
func (t *tracked) Dirty() (*block.Set, error) {
	if !t.good {
		return nil, errNotSaved
	}
	set := new(block.Set)
	err := t.extents(0, t.size, func(from, to int64) {
		set.Add(from/block.DefaultBlockSize, (to-from+block.DefaultBlockSize-1)/block.DefaultBlockSize)
	})
	return set, err
}

// extents calls f for each range of data in the sink between from and to.
func (t *tracked) extents(from, to int64, f func(from, to int64)) error {
	fd := int(t.sink.Fd())
	for from < to {
		data, err := unix.Seek(fd, from, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= to {
			return nil // no more data
		}
		if err == nil {
			from, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		}
		if err != nil {
			return fmt.Errorf("looking for written pages: %w", err)
		}
		f(data, min(from, to))
	}
	return nil
}

// Read fills p from the sink where it has data, and from what was there at the start elsewhere.
func (t *tracked) Read(p []byte, off int64) error {
	if off < 0 || off > t.size || int64(len(p)) > t.size-off {
		return fmt.Errorf("reading guest memory: %d bytes at %d are outside of it", len(p), off)
	}
	if !t.good {
		return errNotSaved
	}
	var failed error
	read := func(f *os.File, from, to int64) {
		if _, err := f.ReadAt(p[from-off:to-off], from); err != nil && err != io.EOF && failed == nil {
			failed = fmt.Errorf("reading guest memory: %w", err)
		}
	}
	next, end := off, off+int64(len(p))
	before := func(to int64) {
		switch {
		case to <= next:
		case t.lazy:
			failed = errors.New("reading guest memory: the guest has not touched it, and somebody else serves it")
		case t.base == nil:
			clear(p[next-off : to-off])
		default:
			read(t.base, next, to)
		}
	}
	err := t.extents(off, end, func(from, to int64) {
		before(from)
		read(t.sink, from, to)
		next = to
	})
	before(end)
	return errors.Join(err, failed)
}

func (t *tracked) Close() error {
	if t.base == nil {
		return nil
	}
	return t.base.Close()
}
