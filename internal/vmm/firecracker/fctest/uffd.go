package fctest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/userfaultfd.h.
const (
	uffdAPI         = 0xaa
	userfaultNew    = 0xaa00
	uffdioAPI       = 0xc018aa3f
	uffdioRegister  = 0xc020aa00
	registerMissing = 1
	eventRemove     = 1 << 3
)

// mapAnonymous maps fresh memory over p.
func mapAnonymous(p []byte) error {
	addr := uintptr(unsafe.Pointer(&p[0]))
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, addr, uintptr(len(p)), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// newUserfault asks the device for a userfaultfd or, where there is none, the system call.
func newUserfault() (uintptr, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	device, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
		if errno != 0 {
			return 0, fmt.Errorf("userfaultfd: %w", errno)
		}
		return fd, nil
	} else if err != nil {
		return 0, fmt.Errorf("/dev/userfaultfd: %w", err)
	}
	defer unix.Close(device)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), userfaultNew, flags)
	if errno != 0 {
		return 0, fmt.Errorf("USERFAULTFD_IOC_NEW: %w", errno)
	}
	return fd, nil
}

// servedMemory maps memory whose pages the process at a socket serves, and hands it over as Firecracker does: one message, a list of regions and the
// userfaultfd, on a connection that stays open.
func servedMemory(socket string, size int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	fd, err := newUserfault()
	if err != nil {
		return nil, err
	}
	api := [3]uint64{uffdAPI, eventRemove, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return nil, fmt.Errorf("UFFDIO_API: %w", errno)
	}
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	register := [4]uint64{base, uint64(size), registerMissing, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
		return nil, fmt.Errorf("UFFDIO_REGISTER: %w", errno)
	}
	text, err := json.Marshal([]map[string]uint64{{
		"base_host_virt_addr": base, "size": uint64(size), "offset": 0, "page_size": pageSize, "page_size_kib": pageSize,
	}})
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	_, _, err = conn.WriteMsgUnix(text, unix.UnixRights(int(fd)), nil)
	keepOpen(conn)
	return memory, err
}

// keepOpen has a connection outlive its last use: a server takes its end for ours.
func keepOpen(conn *net.UnixConn) {
	go func() {
		conn.Read(make([]byte, 1))
		select {}
	}()
}
