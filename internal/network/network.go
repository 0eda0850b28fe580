// Package network gives sandboxes networks of their own: each gets a slot, which is a network namespace with a tap interface for its machine and a link to
// the host, with rules that say what it may reach.
//
//	machine ── tap0 (169.254.0.22) ─ namespace ─ eth0 ══ spore-N ─ host ─ the world
//	169.254.0.21                                10.219.x.y+1  10.219.x.y
//
// The machine's side is the same in every slot, so that a snapshot's address is right wherever it wakes; the namespace hides it behind an address of the
// slot's own, and the host hides that behind its own. A slot reaches the world through the host, IPv4 only, and nobody opens connections to it. What no slot
// may reach is the host itself, other slots, and the addresses at which clouds hand out credentials.
//
// Nothing here has to be cleaned up after a crash, because the kernel does it: a namespace has no name and lives as long as the descriptors that lead to it,
// its link lives as long as the namespace, and the host's table of rules lives as long as the socket by which it was made. A link's name is its slot's claim:
// there can be only one.
//
// A slot is made in this order: pool.go (a number, and the host's side), namespace.go, slot.go (the namespace's inside), tap.go, filter.go (what may be
// reached). policy.go is what the user says about that.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What a machine sees: the same in every slot.
const (
	GuestAddress = "169.254.0.21/30"
	Gateway      = "169.254.0.22"
	TapName      = "tap0"
)

// LinkPrefix begins the names of the host's ends of all slots' links; the slot's number follows.
const LinkPrefix = "spore-"

// DefaultSubnet has the addresses of the links between the host and its slots: 32768 of them.
var DefaultSubnet = netip.MustParsePrefix("10.219.0.0/16")

// ErrUnable is wrapped by every [UnableError].
var ErrUnable = errors.New("tap networking is not possible here")

// UnableError says what this host or this user lacks for networks of this kind.
type UnableError struct {
	Reason error
	Hint   string // how to mend it
}

func (e *UnableError) Error() string { return fmt.Sprintf("%v: %v: %s", ErrUnable, e.Reason, e.Hint) }

// Unwrap returns ErrUnable and the reason.
func (e *UnableError) Unwrap() []error { return []error{ErrUnable, e.Reason} }

// uplinkName is a namespace's end of its link to the host.
const uplinkName = "eth0"

var (
	guestAddr   = netip.MustParsePrefix(GuestAddress).Addr()
	gatewayAddr = netip.MustParseAddr(Gateway)

	// gatewayMAC is constant so that what a frozen guest has learned of its gateway stays right.
	gatewayMAC = net.HardwareAddr{0x02, 's', 'p', 'o', 'r', 'e'}
)

// MAC derives a hardware address from a sandbox's id: of one station only, and locally administered.
func MAC(id [16]byte) net.HardwareAddr {
	return net.HardwareAddr{0x02, id[0], id[1], id[2], id[3], id[4]}
}

// unable says what is missing and how to mend it.
func unable(hint, format string, args ...any) error {
	return &UnableError{Reason: fmt.Errorf(format, args...), Hint: hint}
}

const privilegeHint = "run spore as root, or use --net user, which needs no privilege"

// permitted refuses what the kernel would refuse later with less of an explanation.
func permitted() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading the process's capabilities: %w", err)
	}
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			return unable(privilegeHint, "this process lacks %s", c.name)
		}
	}
	return nil
}
