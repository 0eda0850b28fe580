package boot

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// vsockPrefix begins the name of a port to the host that is a port of the guest's vsock, followed by its number.
const vsockPrefix = "vsock:"

// openHost opens the stream to the host: a virtio-serial port or, for names such as "vsock:1024", a port of the vsock.
func openHost(name string, limit time.Duration) (net.Listener, error) {
	text, ok := strings.CutPrefix(name, vsockPrefix)
	if !ok {
		return openPort(name, limit)
	}
	port, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("opening the port %q to the host: %w", name, err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		l, err := listenVsock(uint32(port))
		if err == nil {
			return l, nil
		}
		// Its driver may need a moment more.
		if time.Since(start) > limit {
			return nil, fmt.Errorf("opening the port %q to the host: %w", name, err)
		}
	}
}

// listenVsock listens for the host. Connections end when the machine is frozen: the kernel resets them when it wakes, and goes on listening.
func listenVsock(port uint32) (*listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making a vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("binding to vsock port %d: %w", port, err)
	}
	return newListener(fd, vsockPrefix+strconv.FormatUint(uint64(port), 10))
}

// listener accepts from a bound socket of any family. Package net knows no vsocks, so connections are files that can be polled.
type listener struct {
	f      *os.File
	raw    syscall.RawConn
	closed atomic.Bool
}

func newListener(fd int, name string) (*listener, error) {
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Listen(fd, 16); err != nil {
		f.Close()
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("polling %s: %w", name, err)
	}
	return &listener{f: f, raw: raw}, nil
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	var fd int
	var failed error
	err := l.raw.Read(func(listening uintptr) bool {
		for {
			fd, _, failed = unix.Accept4(int(listening), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if failed != unix.EINTR && failed != unix.ECONNABORTED {
				return failed != unix.EAGAIN
			}
		}
	})
	if l.closed.Load() {
		if err == nil && failed == nil {
			unix.Close(fd)
		}
		return nil, net.ErrClosed
	}
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("waiting for the host: %w", err)
	}
	return &conn{os.NewFile(uintptr(fd), l.f.Name())}, nil
}

// Close implements [net.Listener].
func (l *listener) Close() error {
	l.closed.Store(true)
	return l.f.Close()
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr { return streamAddr(l.f.Name()) }

// conn is a connection of the host's.
type conn struct{ *os.File }

// LocalAddr implements [net.Conn].
func (c *conn) LocalAddr() net.Addr { return streamAddr(c.Name()) }

// RemoteAddr implements [net.Conn].
func (c *conn) RemoteAddr() net.Addr { return streamAddr("host") }

type streamAddr string

func (streamAddr) Network() string  { return "vsock" }
func (a streamAddr) String() string { return string(a) }
