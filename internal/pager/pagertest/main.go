package pagertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager/uffd"
)

// Main is the body of a client process: it does what it reads from in, line by
// line, and answers on out, until in ends.
func Main(in io.Reader, out io.Writer) error {
	debug.SetGCPercent(-1) // a collector that stops the world would wait for threads that wait for pages
	m := &memory{fd: -1}
	d, e := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a reply
		var err error
		switch {
		case r.Map != nil:
			err = m.mapAll(r.Map)
		case r.Hello != nil:
			err = m.hello(*r.Hello)
		case r.Touch != nil:
			a.Touched, err = m.touch(*r.Touch)
		case r.Give != nil:
			a.Touched, err = m.give(*r.Give)
		case r.Remove != nil:
			err = m.remove(r.Remove.Offset, r.Remove.Size)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := e.Encode(a); err != nil {
			return err
		}
	}
}

// memory is what a client has mapped.
type memory struct {
	fd      uffd.FD
	regions []mapped
	removed [][2]int64
	conns   []*net.UnixConn
}

type mapped struct {
	Region
	bytes []byte
}

func (m *memory) mapAll(regions []Region) error {
	fd, _, err := uffd.Open(uffd.EventRemove)
	if err != nil {
		return err
	}
	m.fd = fd
	for _, r := range regions {
		flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
		if r.PageSize > 4<<10 {
			flags |= unix.MAP_HUGETLB | 21<<unix.MAP_HUGE_SHIFT
		}
		bytes, err := unix.Mmap(-1, 0, int(r.Size), unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			return fmt.Errorf("mapping %d bytes in pages of %d: %w", r.Size, r.PageSize, err)
		}
		if r.PageSize == 4<<10 {
			_ = unix.Madvise(bytes, unix.MADV_NOHUGEPAGE)
		}
		if err := fd.Register(address(bytes), uint64(r.Size)); err != nil {
			return err
		}
		m.regions = append(m.regions, mapped{r, bytes})
	}
	return nil
}

func address(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

// at returns the n bytes at a place of the image.
func (m *memory) at(offset, n int64) ([]byte, error) {
	for _, r := range m.regions {
		if offset >= r.Offset && offset+n <= r.Offset+r.Size {
			return r.bytes[offset-r.Offset:][:n], nil
		}
	}
	return nil, fmt.Errorf("%d bytes at %d are not mapped", n, offset)
}

// hello connects and sends regions and descriptor in one message, as Firecracker does.
func (m *memory) hello(h Hello) error {
	type region struct {
		Base     uint64 `json:"base_host_virt_addr"`
		Size     int64  `json:"size"`
		Offset   int64  `json:"offset"`
		PageSize int64  `json:"page_size"`
		Old      int64  `json:"page_size_kib"`
	}
	var said []region
	for _, r := range m.regions {
		said = append(said, region{address(r.bytes), r.Size, r.Offset, r.PageSize, r.PageSize})
	}
	if h.Only > 0 {
		said = said[:h.Only]
	}
	message, err := json.Marshal(said)
	if err != nil {
		return err
	}
	if h.Raw != nil {
		message = []byte(*h.Raw)
	}
	if !h.Late {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.Path, Net: "unix"})
		if err != nil {
			return err
		}
		m.conns = append(m.conns, conn) // Firecracker keeps it too
	}
	if len(m.conns) == 0 {
		return errors.New("there is no connection to be late on")
	}
	conn := m.conns[len(m.conns)-1]
	if len(message) == 0 {
		return nil
	}
	fd, n := int(m.fd), 1
	if h.NoUffd {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		fd = int(null.Fd())
	}
	if h.Descriptors != nil {
		n = *h.Descriptors
	}
	var fds []int
	for range n {
		fds = append(fds, fd)
	}
	var oob []byte
	if n > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(message, oob, nil)
	return err
}

func (m *memory) remove(offset, length int64) error {
	p, err := m.at(offset, length)
	if err != nil {
		return err
	}
	if err := unix.Madvise(p, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("giving memory back: %w", err)
	}
	m.removed = append(m.removed, [2]int64{offset, offset + length})
	return nil
}

func (m *memory) wasRemoved(offset int64) bool {
	for _, r := range m.removed {
		if offset >= r[0] && offset < r[1] {
			return true
		}
	}
	return false
}

// raise makes sure that threads that wait for a page don't keep others from running.
func raise(threads int) { runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), threads+4)) }
