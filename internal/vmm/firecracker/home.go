package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/cage"
)

// The descriptors that a VMM is born with. It is told their paths below /proc/self/fd, which has three merits: they need no path that its user can reach, they
// are shorter than the 108 bytes of a socket's address wherever the files are, and they are the same for every machine, so that those which Firecracker writes
// down in a device state are right wherever it is loaded.
const (
	fdHome     = 3 + iota // the machine's folder, with its sockets
	fdMemory              // file mapped as RAM
	fdState               // written by SaveState
	fdSink                // the memory that Firecracker writes along with the state
	fdIncoming            // device state to start from
	fdDisk
	fdKernel
	fdInitramfs
	fdUffd   // socket of who serves the memory
	fdBinary // Firecracker itself
)

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// homeName is the name of the VMM's folder in the machine's own, which its owner keeps files in too.
const homeName = "firecracker"

// The files in a machine's folder.
const (
	apiSocket   = "api"
	vsockSocket = "vsock"
	logPipe     = "log"
	metricsPipe = "metrics"
)

func homePath(name string) string { return fdPath(fdHome) + "/" + name }

// home is the folder that a VMM makes its sockets in, and the files it is handed.
type home struct {
	dir     *os.File // where the sockets are, as we see it
	remove  string   // path of all that is to be removed in the end
	state   *os.File
	sink    *os.File
	log     *os.File // our ends of the pipes
	metrics *os.File
}

// newHome makes the folder path, for a VMM that runs as who says (nil: as ourselves).
func newHome(path string, who *syscall.Credential) (*home, error) {
	h := &home{remove: path}
	err := h.make(path, who)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a machine's folder: %w", err), h.close())
	}
	return h, nil
}

func (h *home) make(path string, who *syscall.Credential) (err error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := give(path, who); err != nil {
		return err
	}
	if h.dir, err = os.OpenFile(path, unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	for name, end := range map[string]**os.File{logPipe: &h.log, metricsPipe: &h.metrics} {
		pipe := filepath.Join(path, name)
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: pipe, Err: err}
		}
		// Open for writing too, so that there is no end of file before the VMM has opened it.
		if *end, err = os.OpenFile(pipe, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		if err := give(pipe, who); err != nil {
			return err
		}
	}
	return nil
}

// give makes who the owner of a file.
func give(path string, who *syscall.Credential) error {
	if who == nil {
		return nil
	}
	return os.Lchown(path, int(who.Uid), int(who.Gid))
}

// files opens what the VMM is handed, in the order of the fd constants.
func (h *home) files(binary string, c vmm.Config) (files []*os.File, err error) {
	// What there is none of is a folder: a number that is free would be taken by something of Firecracker's own, which it could then take for its disk.
	files = slices.Repeat([]*os.File{h.dir}, fdBinary-fdHome+1)
	if c.Disk != nil {
		files[fdDisk-fdHome] = c.Disk
	}
	set := func(fd int, f *os.File, err error) error {
		files[fd-fdHome] = f
		return err
	}
	open := func(fd, flags int, path string) error {
		n, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		return set(fd, os.NewFile(uintptr(n), path), nil)
	}
	if h.state, err = cage.MemoryFile("device state", nil); err != nil {
		return files, err
	}
	if h.sink, err = cage.MemoryFile("memory", nil); err != nil {
		return files, err
	}
	files[fdState-fdHome], files[fdSink-fdHome] = h.state, h.sink
	if err := open(fdBinary, unix.O_RDONLY, binary); err != nil {
		return files, err
	}
	if c.Boot != nil {
		if err := open(fdKernel, unix.O_RDONLY, c.Boot.Kernel); err != nil {
			return files, err
		}
		if c.Boot.Initramfs != "" {
			return files, open(fdInitramfs, unix.O_RDONLY, c.Boot.Initramfs)
		}
		return files, nil
	}
	if c.Uffd != "" {
		if err := open(fdUffd, unix.O_PATH, c.Uffd); err != nil {
			return files, err
		}
	} else {
		files[fdMemory-fdHome] = c.Memory
	}
	incoming, err := cage.MemoryFile("device state", c.State)
	return files, set(fdIncoming, incoming, err)
}

// handedOver closes our copies of what only the VMM needs from now on.
func (h *home) handedOver(files []*os.File, memory *os.File) {
	for _, f := range files {
		if f != nil && f != h.dir && f != h.state && f != h.sink && f != memory {
			f.Close()
		}
	}
}

// dial connects to a socket of process pid in the folder, by a path that is short however deep the folder is. The folder is the VMM's, and one that a guest has taken over
// may have put something else there: a link that leads to another sandbox's socket, or to one of the host's that we may speak to and it may not.
func (h *home) dial(ctx context.Context, name string, pid int) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fdPath(int(h.dir.Fd()))+"/"+name)
	if err != nil {
		return nil, err
	}
	peer, err := peerOf(conn)
	if err == nil && int(peer.Pid) != pid {
		err = fmt.Errorf("the socket %s is not the VMM's, but of process %d", name, peer.Pid)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// peerOf returns who listens at the other end of a connection.
func peerOf(conn net.Conn) (peer *unix.Ucred, err error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { peer, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, inner); err != nil {
		return nil, fmt.Errorf("asking whose socket it is: %w", err)
	}
	return peer, nil
}

// close removes the folder.
func (h *home) close() error {
	var errs []error
	for _, f := range []*os.File{h.dir, h.state, h.sink, h.log, h.metrics} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(h.remove))...)
}
