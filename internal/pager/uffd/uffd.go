// Package uffd is Linux's userfaultfd as system calls: a descriptor that tells
// which pages of a memory are missing, and takes what belongs there.
//
// The numbers and layouts are those of linux/userfaultfd.h, version 0xAA of the
// interface. They are the same on amd64 and arm64.
package uffd

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	apiVersion = 0xaa

	ioctlNew      = 0x0000aa00 // of /dev/userfaultfd
	ioctlAPI      = 0xc018aa3f
	ioctlRegister = 0xc020aa00
	ioctlWake     = 0x8010aa02
	ioctlCopy     = 0xc028aa03
	ioctlZero     = 0xc020aa04

	userModeOnly    = 1
	registerMissing = 1
)

// Features that a descriptor may be opened with.
const (
	EventRemove uint64 = 1 << 3 // tell when pages are given back (MADV_DONTNEED and its kin)
	EventUnmap  uint64 = 1 << 6 // tell when memory is unmapped
)

// FD is an open userfaultfd.
type FD int

// Open returns a new descriptor for the memory of this process. Faults inside
// the kernel are handled too if the process may ask for that, as only root can
// everywhere; the second result tells.
func Open(features uint64) (FD, bool, error) {
	fd, all, err := create()
	if err != nil {
		return -1, false, fmt.Errorf("opening a userfaultfd: %w (see vm.unprivileged_userfaultfd and the permissions of /dev/userfaultfd)", err)
	}
	arg := struct{ api, features, ioctls uint64 }{apiVersion, features, 0}
	if err := ioctl(fd, ioctlAPI, unsafe.Pointer(&arg)); err != nil {
		fd.Close()
		return -1, false, fmt.Errorf("asking a userfaultfd for features %#x: %w", features, err)
	}
	return fd, all, nil
}

// create tries what gives most first.
func create() (FD, bool, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	if fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0); errno == 0 {
		return FD(fd), true, nil
	}
	if dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(dev)
		if fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, flags); errno == 0 {
			return FD(fd), true, nil
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags|userModeOnly, 0, 0)
	if errno != 0 {
		return -1, false, errno
	}
	return FD(fd), false, nil
}

// Register asks for the faults of missing pages in length bytes from address on.
func (f FD) Register(address, length uint64) error {
	arg := struct{ start, length, mode, ioctls uint64 }{address, length, registerMissing, 0}
	if err := ioctl(f, ioctlRegister, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("registering memory with a userfaultfd: %w", err)
	}
	return nil
}

// Copy puts p at address, which must be missing there, and wakes who waits for
// it. It returns how many bytes were put. After fewer than all the error is
// EAGAIN; with none put that means that events are to be read first, or are
// being acted on. EEXIST: there is a page. ENOENT: no such memory. ESRCH: its
// process is ending.
func (f FD) Copy(address uint64, p []byte) (int, error) {
	arg := struct {
		dst, src, length, mode uint64
		copied                 int64
	}{dst: address, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), length: uint64(len(p))}
	err := ioctl(f, ioctlCopy, unsafe.Pointer(&arg))
	return result(arg.copied, err)
}

// Zero makes length bytes from address on read as zeros without giving them
// memory. It returns what Copy does, and EINVAL for huge pages, which have no
// such thing.
func (f FD) Zero(address, length uint64) (int, error) {
	arg := struct {
		start, length, mode uint64
		zeroed              int64
	}{start: address, length: length}
	err := ioctl(f, ioctlZero, unsafe.Pointer(&arg))
	return result(arg.zeroed, err)
}

// result sorts out the two ways in which the kernel answers: the field is set
// even where the call fails, to a count or to an error.
func result(done int64, err error) (int, error) {
	if err == nil {
		return int(done), nil
	}
	if err == unix.EAGAIN && done > 0 {
		return int(done), err
	}
	return 0, err
}

// Wake wakes who waits for a page in length bytes from address on.
func (f FD) Wake(address, length uint64) error {
	arg := struct{ start, length uint64 }{address, length}
	return ioctl(f, ioctlWake, unsafe.Pointer(&arg))
}

// Close closes the descriptor. When the last of its copies is closed the missing
// pages of its memory read as zeros.
func (f FD) Close() error { return unix.Close(int(f)) }

func ioctl(f FD, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Check tells whether fd is a userfaultfd, and makes sure that reading from it
// does not block.
func Check(fd int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("looking at a descriptor: %w", err)
	}
	if name != "anon_inode:[userfaultfd]" {
		return fmt.Errorf("the descriptor is %q, not a userfaultfd", name)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("making a userfaultfd non-blocking: %w", err)
	}
	return nil
}

// Kind is what a Message is about.
type Kind uint8

// The kinds of messages.
const (
	Fault  Kind = 0x12
	Fork   Kind = 0x13
	Remap  Kind = 0x14
	Remove Kind = 0x15
	Unmap  Kind = 0x16
)

// messageSize is the size of struct uffd_msg.
const messageSize = 32

// Message is one event, as the kernel lays it out.
type Message struct {
	Kind Kind
	_    [7]byte
	arg  [3]uint64
}

var _ [messageSize - unsafe.Sizeof(Message{})]byte

// Address is where a Fault was; it may lie anywhere in the page.
func (m *Message) Address() uint64 { return m.arg[1] }

// Missing tells whether a Fault is of a page that is not there, the only kind
// that is asked for here.
func (m *Message) Missing() bool {
	const protected, minor = 2, 4
	return m.arg[0]&(protected|minor) == 0
}

// Range is the memory that was removed or unmapped.
func (m *Message) Range() (start, end uint64) { return m.arg[0], m.arg[1] }

// Child is the descriptor that came with Fork.
func (m *Message) Child() FD { return FD(int32(m.arg[0])) }

// Read fills messages with what has happened, and returns how many there were:
// none is no error.
func (f FD) Read(messages []Message) (int, error) {
	p := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(messages))), len(messages)*messageSize)
	n, err := unix.Read(int(f), p)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("reading from a userfaultfd: %w", err)
	}
	return n / messageSize, nil
}
