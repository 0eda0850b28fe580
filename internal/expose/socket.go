package expose

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Listen returns a listener on a new unix socket that only this user can reach. Closing it removes the socket.
// Paths are limited to 107 bytes by the kernel.
func Listen(path string) (*net.UnixListener, error) {
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return nil, fmt.Errorf("listening on %s: the path is longer than the %d bytes that a unix socket's may have; use a shorter directory", path, limit)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for NBD clients: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("keeping others from a socket: %w", err)
	}
	return listener, nil
}

// Pair returns the two ends of a connection without a name: one to serve, and one to hand to a VMM as an open file (QEMU:
// -blockdev driver=nbd,server.type=fd,server.str=<number>). Both are the caller's to close.
func Pair() (serve net.Conn, hand *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "nbd server"), os.NewFile(uintptr(fds[1]), "nbd client")
	defer ours.Close() // FileConn makes a copy
	serve, err = net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	return serve, theirs, nil
}
