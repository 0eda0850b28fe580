package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"github.com/sporevm/spore/internal/guest/api"
	"golang.org/x/sys/unix"
)

// SetLoopback brings the loopback interface up. The kernel gives it its addresses by itself.
func SetLoopback() error {
	return withInterface("lo", func(i *netInterface) error { return i.up(true) })
}

// sameNet reports whether two configurations are equal.
func sameNet(a, b *api.Net) bool {
	return a.Interface == b.Interface && a.MAC == b.MAC && a.Address == b.Address && a.Gateway == b.Gateway && slices.Equal(a.DNS, b.DNS)
}

// setNetwork configures the guest's one interface. Doing it again with the same values changes nothing that a program could see.
func (m *Machine) setNetwork(n *api.Net) error {
	name := n.Interface
	if name == "" {
		var err error
		if name, err = firstInterface("/sys/class/net"); err != nil {
			return err
		}
	}
	if err := withInterface(name, func(i *netInterface) error { return i.configure(n) }); err != nil {
		return err
	}
	if len(n.DNS) == 0 {
		return nil
	}
	var text bytes.Buffer
	for _, server := range n.DNS {
		addr, err := netip.ParseAddr(server)
		if err != nil {
			return fmt.Errorf("%w: name server: %w", ErrInvalid, err)
		}
		fmt.Fprintf(&text, "nameserver %s\n", addr)
	}
	return m.put("/etc/resolv.conf", text.Bytes())
}

// firstInterface returns the name of the first interface that is backed by a device.
func firstInterface(class string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", fmt.Errorf("looking for a network interface: %w", err)
	}
	for _, e := range entries {
		if _, err := os.Stat(class + "/" + e.Name() + "/device"); err == nil {
			return e.Name(), nil
		}
	}
	return "", errors.New("the machine has no network interface: start it with one")
}

// netInterface is a network interface that is configured by the classic ioctls: they do all that one static address needs.
type netInterface struct {
	fd   int
	name [unix.IFNAMSIZ]byte
}

func withInterface(name string, do func(*netInterface) error) error {
	i := &netInterface{}
	if len(name) == 0 || len(name) >= len(i.name) {
		return fmt.Errorf("%w: interface name %q", ErrInvalid, name)
	}
	copy(i.name[:], name)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	i.fd = fd
	if err := do(i); err != nil {
		return fmt.Errorf("configuring network interface %s: %w", name, err)
	}
	return nil
}

func (i *netInterface) configure(n *api.Net) error {
	if n.MAC != "" {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("%w: MAC address %q", ErrInvalid, n.MAC)
		}
		if err := i.setMAC(mac); err != nil {
			return fmt.Errorf("setting MAC address %s: %w", n.MAC, err)
		}
	}
	if n.Address != "" {
		prefix, err := netip.ParsePrefix(n.Address)
		if err != nil || !prefix.Addr().Is4() {
			return fmt.Errorf("%w: address %q is not an IPv4 address with a prefix length", ErrInvalid, n.Address)
		}
		mask := net.CIDRMask(prefix.Bits(), 32)
		if err := i.setAddress(unix.SIOCSIFADDR, prefix.Addr()); err != nil {
			return fmt.Errorf("setting address %s: %w", n.Address, err)
		}
		if err := i.setAddress(unix.SIOCSIFNETMASK, netip.AddrFrom4([4]byte(mask))); err != nil {
			return fmt.Errorf("setting the netmask of %s: %w", n.Address, err)
		}
	}
	if err := i.up(true); err != nil {
		return err
	}
	if n.Gateway == "" {
		return nil
	}
	gateway, err := netip.ParseAddr(n.Gateway)
	if err != nil || !gateway.Is4() {
		return fmt.Errorf("%w: gateway %q is not an IPv4 address", ErrInvalid, n.Gateway)
	}
	if err := i.setGateway(gateway); err != nil {
		return fmt.Errorf("setting gateway %s: %w", gateway, err)
	}
	return nil
}

// ifreq is struct ifreq: the name, and a union of 24 bytes.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func (i *netInterface) request(code uint, r *ifreq) error {
	r.name = i.name
	return i.ioctl(code, unsafe.Pointer(r))
}

func (i *netInterface) ioctl(code uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(i.fd), uintptr(code), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// up switches the interface on or off.
func (i *netInterface) up(on bool) error {
	var r ifreq
	if err := i.request(unix.SIOCGIFFLAGS, &r); err != nil {
		return fmt.Errorf("reading its flags: %w", err)
	}
	flags := (*uint16)(unsafe.Pointer(&r.data))
	want := *flags &^ unix.IFF_UP
	if on {
		want = *flags | unix.IFF_UP
	}
	if want == *flags {
		return nil
	}
	*flags = want
	if err := i.request(unix.SIOCSIFFLAGS, &r); err != nil {
		return fmt.Errorf("switching it on or off: %w", err)
	}
	return nil
}

// setMAC changes the hardware address, which some drivers allow only while the interface is down.
func (i *netInterface) setMAC(mac net.HardwareAddr) error {
	var r ifreq
	if err := i.request(unix.SIOCGIFHWADDR, &r); err != nil {
		return err
	}
	if bytes.Equal(r.data[2:8], mac) {
		return nil
	}
	if err := i.up(false); err != nil {
		return err
	}
	copy(r.data[2:8], mac) // after the family, which stays
	return i.request(unix.SIOCSIFHWADDR, &r)
}

func (i *netInterface) setAddress(code uint, addr netip.Addr) error {
	var r ifreq
	putAddress(r.data[:], addr)
	return i.request(code, &r)
}

// putAddress fills in a struct sockaddr_in without a port.
func putAddress(p []byte, addr netip.Addr) {
	*(*uint16)(unsafe.Pointer(&p[0])) = unix.AF_INET
	ip := addr.As4()
	copy(p[4:8], ip[:])
}

// rtentry is struct rtentry of 64-bit machines.
type rtentry struct {
	_           uint64
	destination [16]byte
	gateway     [16]byte
	mask        [16]byte
	flags       uint16
	_           int16
	_           uint64
	_           uint64
	metric      int16
	device      *byte
	_           uint64
	_           uint64
	_           uint16
}

// setGateway makes addr the default route; one that is there already is fine.
func (i *netInterface) setGateway(addr netip.Addr) error {
	any := netip.IPv4Unspecified()
	r := rtentry{flags: unix.RTF_UP | unix.RTF_GATEWAY, device: &i.name[0]}
	putAddress(r.destination[:], any)
	putAddress(r.mask[:], any)
	putAddress(r.gateway[:], addr)
	err := i.ioctl(unix.SIOCADDRT, unsafe.Pointer(&r))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
