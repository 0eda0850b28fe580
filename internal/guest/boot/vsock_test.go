package boot

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unixListener is a listener like that of a vsock, of a family that every host has.
func unixListener(t *testing.T) (*listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "host")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	l, err := newListener(fd, "vsock:7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

// TestListener takes connections one after another, as the agent does, and checks that they are connections in every respect that HTTP asks for.
func TestListener(t *testing.T) {
	l, path := unixListener(t)
	for range 2 {
		go func() {
			host, err := net.Dial("unix", path)
			if err != nil {
				t.Error(err)
				return
			}
			defer host.Close()
			io.Copy(host, host) // until the guest's side is closed
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 5)
		if _, err := io.ReadFull(c, p); err != nil || string(p) != "hello" {
			t.Errorf("read %q, %v", p, err)
		}
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a read past its deadline: %v", err)
		}
		if c.LocalAddr().String() != "vsock:7" || c.RemoteAddr().String() != "host" {
			t.Errorf("addresses %v and %v", c.LocalAddr(), c.RemoteAddr())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestListenerCloses checks that Accept does not outlive its listener.
func TestListenerCloses(t *testing.T) {
	l, _ := unixListener(t)
	failed := make(chan error)
	go func() {
		_, err := l.Accept()
		failed <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
}

// TestVsock binds a real one, as far as this host's kernel has them: nobody can connect to it from here.
func TestVsock(t *testing.T) {
	const port = 0x5eed
	l, err := openHost("vsock:24301", 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("this kernel has no vsocks: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw := l.(*listener)
	addr, err := unix.Getsockname(int(raw.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if vm, ok := addr.(*unix.SockaddrVM); !ok || vm.Port != port {
		t.Errorf("the socket is bound to %+v", addr)
	}
	if _, err := openHost("vsock:24301", 0); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	for _, bad := range []string{"vsock:", "vsock:-1", "vsock:99999999999"} {
		if _, err := openHost(bad, 0); err == nil {
			t.Errorf("%q is a port", bad)
		}
	}
}
