package agent

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoChild is the part of siginfo_t that waitid fills in, padded to the 128
// bytes that the kernel may write. The layout is the same on amd64 and arm64.
type siginfoChild struct {
	signo int32
	errno int32
	code  int32
	_     int32
	pid   int32
	uid   uint32
	_     [104]byte
}

// waitid asks for children that changed state. info.pid stays 0 if, under
// WNOHANG, none did.
func waitid(idType, id int, info *siginfoChild, options int) error {
	*info = siginfoChild{}
	return unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(info)), options, nil)
}
