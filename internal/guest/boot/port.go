package boot

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	portNames    = "/sys/class/virtio-ports/*/name"
	portDeadline = 10 * time.Second
)

// Port is the virtio-serial port to the host, as a listener: a connection is the time from the host's opening the port to its closing it, and there is
// one at a time. The kernel tells of both by waking the port's poll queue; nothing here spins or ticks.
type Port struct {
	f   *os.File
	raw syscall.RawConn

	nudged atomic.Bool // the read deadline has passed only to wake a reader

	mu      sync.Mutex
	current *session
	left    []byte // read on behalf of the next session
	closed  bool
}

// openPort finds the port by the name that the VMM gave it and opens it. Its directory appears some time after the driver is loaded, and the device
// refuses to open for a moment longer.
func openPort(name string, limit time.Duration) (*Port, error) {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		f, err := tryPort(name)
		if err == nil {
			return newPort(f)
		}
		if time.Since(start) > limit {
			return nil, fmt.Errorf("opening the port %q to the host: %w", name, err)
		}
	}
}

func tryPort(name string) (*os.File, error) {
	paths, err := filepath.Glob(portNames)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		return os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	}
	return nil, errors.New("there is no virtio-serial port of that name")
}

func newPort(f *os.File) (*Port, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("polling %s: %w", f.Name(), err)
	}
	return &Port{f: f, raw: raw}, nil
}

// Accept waits until the last session has ended and the host has opened the port.
func (p *Port) Accept() (net.Conn, error) {
	p.mu.Lock()
	last := p.current
	p.mu.Unlock()
	if last != nil {
		<-last.done
		if err := p.drain(last); err != nil {
			return nil, err
		}
	}
	if err := p.waitForHost(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	if err := p.f.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("readying the port: %w", err)
	}
	p.current = newSession(p, p.left)
	p.left = nil
	return p.current, nil
}

// drain throws away what the host still sends to a session that the guest has given up, until the host closes the port or starts anew.
func (p *Port) drain(last *session) error {
	if last.over() {
		return nil
	}
	if err := p.f.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("readying the port: %w", err)
	}
	buf := make([]byte, 64<<10)
	for !last.over() {
		last.discard(buf)
	}
	return nil
}

// waitForHost returns when the host has the port open. An open port is writable, and its becoming so is an event; a closed one shows as hung up.
func (p *Port) waitForHost() error {
	p.mu.Lock()
	early := len(p.left) > 0
	p.mu.Unlock()
	if early {
		return nil
	}
	if err := p.f.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("readying the port: %w", err)
	}
	var pollErr error
	err := p.raw.Write(func(fd uintptr) bool {
		var open bool
		open, _, pollErr = connected(fd) // nobody reads between two sessions
		return open || pollErr != nil
	})
	if err = errors.Join(err, pollErr); err != nil {
		return fmt.Errorf("waiting for the host: %w", err)
	}
	return nil
}

// connected reports whether the host has the port open, and whether there is something to read.
//
// Asking is not without effect: the driver takes a buffer out of its queue to see whether it holds anything, and the interrupt that announces that buffer
// then finds the queue empty and wakes nobody. Whoever asks while a reader may be waiting has to wake it if there is something: see nudge.
func connected(fd uintptr) (open, readable bool, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return fds[0].Revents&unix.POLLHUP == 0, fds[0].Revents&unix.POLLIN != 0, err
		}
	}
}

// nudge has a reader that waits look again.
func (p *Port) nudge() {
	p.nudged.Store(true)
	_ = p.f.SetReadDeadline(time.Unix(1, 0)) // fails only for a port that is closed, which wakes as well
}

// write writes some of b when there is room. A port that the host has closed is an error, EPIPE, where a plain write would wait for the host to come
// back and then give it what was meant for another.
func (p *Port) write(b []byte) (n int, err error) {
	var failed error
	err = p.raw.Write(func(fd uintptr) bool {
		for {
			if n, failed = unix.Write(int(fd), b); failed != unix.EINTR {
				break
			}
		}
		n = max(n, 0)
		if failed != unix.EAGAIN {
			return true
		}
		// A full port and a closed one look alike to a writer.
		open, readable, err := connected(fd)
		if readable {
			p.nudge()
		}
		if err == nil && !open {
			err = unix.EPIPE
		}
		if err != nil {
			failed = err
		}
		return err != nil // else it is asked again once there is room
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return n, fmt.Errorf("writing to the host: %w", err)
	}
	return n, nil
}

// reopened waits a short while for the host to open the port again.
func (p *Port) reopened(limit time.Duration) bool {
	for start := time.Now(); time.Since(start) < limit; time.Sleep(time.Millisecond) {
		var open, readable bool
		var pollErr error
		if err := p.raw.Control(func(fd uintptr) { open, readable, pollErr = connected(fd) }); err != nil || pollErr != nil {
			return false
		}
		if readable {
			p.nudge()
		}
		if open {
			return true
		}
	}
	return false
}

// keep saves bytes that belong to the next session.
func (p *Port) keep(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = append(p.left, b...)
}

// Close makes Accept fail. The port itself is closed with the machine.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.f.Close()
}

// Addr names the port.
func (p *Port) Addr() net.Addr { return portAddr(p.f.Name()) }

type portAddr string

func (portAddr) Network() string  { return "virtio-serial" }
func (a portAddr) String() string { return string(a) }
