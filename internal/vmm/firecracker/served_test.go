package firecracker

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// server serves one machine's memory from a file, page by page, as plainly as can be: the pager has tests of its own.
type server struct {
	path   string
	served atomic.Int64 // pages
}

func serveMemory(t *testing.T, memory *os.File) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "uffd")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{path: filepath.Join(dir, "socket")}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.path, 0o666); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		listener.Close()
		<-done
		os.RemoveAll(dir)
	})
	go func() {
		defer close(done)
		conn, err := listener.AcceptUnix()
		if err != nil {
			return // the test is over
		}
		defer conn.Close()
		if err := s.serve(conn, memory); err != nil {
			t.Errorf("serving memory: %v", err)
		}
	}()
	return s
}

// serve answers faults until the machine is gone.
func (s *server) serve(conn *net.UnixConn, memory io.ReaderAt) error {
	text, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return err
	}
	var regions []struct {
		Base   uint64 `json:"base_host_virt_addr"`
		Size   uint64 `json:"size"`
		Offset uint64 `json:"offset"`
	}
	if err := json.Unmarshal(text[:n], &regions); err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	peer, err := conn.File()
	if err != nil {
		return err
	}
	defer peer.Close()
	event, page := make([]byte, 32), make([]byte, 4096)
	for {
		poll := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}, {Fd: int32(peer.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		}
		if poll[1].Revents != 0 {
			return nil // the machine is gone
		}
		if n, err := unix.Read(fds[0], event); n != 32 || err != nil || event[0] != 0x12 { // UFFD_EVENT_PAGEFAULT
			continue
		}
		addr := binary.NativeEndian.Uint64(event[16:]) &^ 4095
		for _, r := range regions {
			if addr < r.Base || addr >= r.Base+r.Size {
				continue
			}
			if _, err := memory.ReadAt(page, int64(addr-r.Base+r.Offset)); err != nil {
				return err
			}
			put := [5]uint64{addr, uint64(uintptr(unsafe.Pointer(&page[0]))), 4096, 0, 0}
			const uffdioCopy = 0xc028aa03
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), uffdioCopy, uintptr(unsafe.Pointer(&put))); errno == 0 {
				s.served.Add(1)
			} else if errno != unix.EEXIST && errno != unix.ESRCH && errno != unix.EAGAIN {
				return errno
			}
		}
	}
}

// TestServedMemory thaws a machine whose pages come from a page server, and freezes it again.
func TestServedMemory(t *testing.T) {
	needServing(t)
	both(t, func(t *testing.T, e *Engine) {
		state, memory, count := frozen(t, e)
		s := serveMemory(t, memory)
		c := thawed(t, state, nil)
		c.Uffd = s.path
		m := start(t, e, c)
		now := vmmtest.WaitCount(t, m, count)
		if now > count+1<<31 {
			t.Fatalf("the counter went from %d to %d", count, now)
		}
		if err := m.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		dirty, err := m.Dirty(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pages := s.served.Load()
		if pages == 0 || !dirty.Contains(4<<20/4096) {
			t.Errorf("%d pages were served, and the counter's is dirty: %v", pages, dirty.Contains(4<<20/4096))
		}
		t.Logf("the counter went on from %d to %d; %d pages of %d were asked for", count, now, pages, c.MemoryBytes/4096)
		again, next, _ := vmmtest.Freeze(t, m, memory) // reads all of memory, through the page server
		last := vmmtest.Count(t, m)
		m.Close()
		vmmtest.WaitCount(t, start(t, e, thawed(t, again, next)), last)
	})
}

// TestNobodyServes checks that a machine whose page server is not there does not start.
func TestNobodyServes(t *testing.T) {
	needServing(t)
	both(t, func(t *testing.T, e *Engine) {
		state, _, _ := frozen(t, e)
		c := thawed(t, state, nil)
		c.Uffd = filepath.Join(t.TempDir(), "nobody")
		if _, err := e.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("Start: %v, want an error that names the socket", err)
		}
	})
}
