package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Slot is one sandbox's network. Its methods are safe for concurrent use.
type Slot struct {
	pool      *Pool
	number    int
	link      int // index of the host's end of the link; 0: none yet
	namespace *os.File

	once sync.Once
	err  error
}

// Number is the slot's: no other slot of this host has it meanwhile.
func (s *Slot) Number() int { return s.number }

// Name is the name of the slot's tap interface, in its namespace. It is there until the slot is released.
func (s *Slot) Name() string { return TapName }

// Namespace is the slot's network namespace, for a VMM that opens the tap interface by its name. The file stays the slot's.
func (s *Slot) Namespace() *os.File { return s.namespace }

// Open attaches to the tap interface, as one VMM at a time can. The caller closes the file. Each frame begins with a struct virtio_net_hdr.
func (s *Slot) Open() (tap *os.File, err error) {
	err = Within(s.namespace, func() error {
		if tap, err = openTap(TapName); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return settle(h, TapName)
	})
	if err != nil && tap != nil {
		tap.Close()
		return nil, err
	}
	return tap, err
}

// settle has the kernel notice now that an interface has got its carrier. It does so by itself, but may take a second, and until then drops what is sent.
func settle(h *netlink.Handle, name string) error {
	if _, err := h.LinkByName(name); err != nil { // to ask is enough, from Linux 6.8 on
		return fmt.Errorf("finding %s: %w", name, err)
	}
	return nil
}

// SetPolicy says anew what the slot's machine may reach. It holds from the next packet on, for connections that are there as well.
func (s *Slot) SetPolicy(policy Policy) error {
	if err := policy.Check(); err != nil {
		return err
	}
	return installFilter(s.namespace, s.pool.subnet, policy)
}

// LinkName is the name of the host's end of the slot's link.
func (s *Slot) LinkName() string { return fmt.Sprintf("%s%d", LinkPrefix, s.number) }

// Release takes the slot down. Its VMM has ended: as long as one is attached the namespace stays, cut off from the host. It may be called more than once.
func (s *Slot) Release() error {
	s.once.Do(func() {
		var errs []error
		if s.link != 0 {
			// With one end of the link goes the other.
			if err := s.pool.deleteLink(s.link); err != nil {
				errs = append(errs, fmt.Errorf("removing %s: %w", s.LinkName(), err))
			}
		}
		s.err = errors.Join(append(errs, s.namespace.Close(), s.pool.leave())...)
	})
	return s.err
}

// furnish makes all that is in the namespace.
func (s *Slot) furnish(policy Policy) error {
	if err := installFilter(s.namespace, s.pool.subnet, policy); err != nil {
		return err
	}
	return Within(s.namespace, func() error {
		for _, name := range []string{"all", "default"} {
			if err := withoutIPv6(name); err != nil {
				return err
			}
		}
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
		return makeTap(TapName)
	})
}

// connect gives the interfaces of the namespace their addresses. The link to the host is there.
func (s *Slot) connect() error {
	host, inside := s.pool.addresses(s.number)
	return Within(s.namespace, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("opening the namespace's configuration: %w", err)
		}
		defer h.Close()
		tap, err := h.LinkByName(TapName)
		if err != nil {
			return fmt.Errorf("finding %s: %w", TapName, err)
		}
		if err := h.LinkSetHardwareAddr(tap, gatewayMAC); err != nil {
			return fmt.Errorf("setting the hardware address of %s: %w", TapName, err)
		}
		if err := bringUp(h, tap, netip.PrefixFrom(gatewayAddr, netip.MustParsePrefix(GuestAddress).Bits())); err != nil {
			return err
		}
		uplink, err := h.LinkByName(uplinkName)
		if err != nil {
			return fmt.Errorf("finding %s: %w", uplinkName, err)
		}
		if err := bringUp(h, uplink, netip.PrefixFrom(inside, linkBits)); err != nil {
			return err
		}
		if err := settle(h, uplinkName); err != nil {
			return err
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: host.AsSlice()}); err != nil {
			return fmt.Errorf("adding the route to the host: %w", err)
		}
		return nil
	})
}

// bringUp gives an interface its address and switches it on.
func bringUp(h *netlink.Handle, link netlink.Link, address netip.Prefix) error {
	name := link.Attrs().Name
	ipNet := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet}); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", name, address, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("switching %s on: %w", name, err)
	}
	return nil
}
