package expose

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers by which Linux's own NBD client is told what to do (linux/nbd-netlink.h and linux/nbd.h).
const (
	kernelFamily  = "nbd"
	kernelVersion = 1

	kernelConnect     = 1
	kernelDisconnect  = 2
	kernelReconfigure = 3

	kernelIndex       = 1
	kernelSize        = 2
	kernelBlockSize   = 3
	kernelTimeout     = 4
	kernelServerFlags = 5
	kernelClientFlags = 6
	kernelSockets     = 7
	kernelBackend     = 10 // a text that names what is behind a device

	kernelSocket   = 1 // in kernelSockets
	kernelSocketFD = 1 // in kernelSocket

	kernelDestroy = 1 << 0 // a client's flag: the device goes with its connection
	kernelOnClose = 1 << 1 // and this one: the connection goes with the last user of the device
)

// kernelSector is the block size of the devices: the smallest, for a file system of small blocks can't be mounted from a device of large ones.
const kernelSector = 512

// connection is what the kernel is told of a disk.
type connection struct {
	size    int64 // bytes
	flags   uint16
	timeout uint64 // seconds that a request may take; then the connection is broken
	socket  uintptr
	mark    string
}

func (c connection) attributes() []nl.NetlinkRequestData {
	sockets := nl.NewRtAttr(kernelSockets, nil)
	sockets.AddRtAttr(kernelSocket, nil).AddRtAttr(kernelSocketFD, nl.Uint32Attr(uint32(c.socket)))
	return []nl.NetlinkRequestData{
		nl.NewRtAttr(kernelSize, nl.Uint64Attr(uint64(c.size))),
		nl.NewRtAttr(kernelBlockSize, nl.Uint64Attr(kernelSector)),
		nl.NewRtAttr(kernelTimeout, nl.Uint64Attr(c.timeout)),
		nl.NewRtAttr(kernelServerFlags, nl.Uint64Attr(uint64(c.flags))),
		nl.NewRtAttr(kernelClientFlags, nl.Uint64Attr(0)),
		sockets,
		nl.NewRtAttr(kernelBackend, nl.ZeroTerminated(c.mark)),
	}
}

// kernelClient is Linux's NBD client.
type kernelClient struct{ family uint16 }

// ErrNoNBD says that this kernel has no NBD client, or none that will do.
var ErrNoNBD = errors.New("the kernel's NBD client is not to be had")

func findKernelClient() (kernelClient, error) {
	f, err := netlink.GenlFamilyGet(kernelFamily)
	if errors.Is(err, unix.ENOENT) {
		return kernelClient{}, fmt.Errorf("%w: load it by sudo modprobe nbd", ErrNoNBD)
	} else if err != nil {
		return kernelClient{}, fmt.Errorf("%w: %w", ErrNoNBD, err)
	}
	return kernelClient{family: f.ID}, nil
}

// request has the kernel do something, and returns its answer.
func (k kernelClient) request(command uint8, attributes ...nl.NetlinkRequestData) ([][]byte, error) {
	flags := 0
	if command != kernelConnect { // which is answered with more than a receipt
		flags = unix.NLM_F_ACK
	}
	r := nl.NewNetlinkRequest(int(k.family), flags)
	r.AddData(&nl.Genlmsg{Command: command, Version: kernelVersion})
	for _, a := range attributes {
		r.AddData(a)
	}
	return r.Execute(unix.NETLINK_GENERIC, 0)
}

// connect makes a free device, or a new one, the disk at the other end of a socket, and returns the device's number.
func (k kernelClient) connect(c connection) (int, error) {
	answers, err := k.request(kernelConnect, c.attributes()...)
	if err != nil {
		return 0, fmt.Errorf("connecting a device: %w", err)
	}
	for _, a := range answers {
		if index, err := connected(a); err == nil {
			return index, nil
		}
	}
	return 0, errors.New("connecting a device: the kernel does not say which")
}

// connected reads the answer to a kernelConnect.
func connected(answer []byte) (int, error) {
	if len(answer) < nl.SizeofGenlmsg || answer[0] != kernelConnect {
		return 0, errors.New("no answer to the question")
	}
	attributes, err := nl.ParseRouteAttr(answer[nl.SizeofGenlmsg:])
	if err != nil {
		return 0, err
	}
	for _, a := range attributes {
		if a.Attr.Type == kernelIndex && len(a.Value) == 4 {
			return int(nl.NativeEndian().Uint32(a.Value)), nil
		}
	}
	return 0, errors.New("an answer without a number")
}

// setFlags sets a client's flags of a device that has the mark.
func (k kernelClient) setFlags(index int, mark string, flags uint64) error {
	_, err := k.request(kernelReconfigure, nl.NewRtAttr(kernelIndex, nl.Uint32Attr(uint32(index))),
		nl.NewRtAttr(kernelClientFlags, nl.Uint64Attr(flags)), nl.NewRtAttr(kernelBackend, nl.ZeroTerminated(mark)))
	if err != nil {
		return fmt.Errorf("setting up the device: %w", err)
	}
	return nil
}

// disconnect takes a device's disk away: what is asked of it fails from then on.
func (k kernelClient) disconnect(index int) error {
	if _, err := k.request(kernelDisconnect, nl.NewRtAttr(kernelIndex, nl.Uint32Attr(uint32(index)))); err != nil {
		return fmt.Errorf("disconnecting the device: %w", err)
	}
	return nil
}
