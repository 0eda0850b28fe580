package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkBits is the length of the prefix that one slot's two addresses share.
const linkBits = 31

// Pool hands out slots. While none is out it holds nothing, so it needs no end. It is safe for concurrent use, also by several processes of one host:
// slots are numbered per host.
type Pool struct {
	subnet netip.Prefix

	mu     sync.Mutex
	slots  int         // that are out
	filter *hostFilter // while there are any
}

// NewPool returns a pool whose slots have their addresses in subnet, an IPv4 network that the host uses for nothing else; zero: [DefaultSubnet].
func NewPool(subnet netip.Prefix) (*Pool, error) {
	if subnet == (netip.Prefix{}) {
		subnet = DefaultSubnet
	}
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet != subnet.Masked() || subnet.Bits() > linkBits || subnet.Bits() < 8 {
		return nil, fmt.Errorf("%s can't be the slots' network: choose an IPv4 network of 8 to %d bits, such as %s", subnet, linkBits, DefaultSubnet)
	}
	return &Pool{subnet: subnet}, nil
}

// room is how many slots have addresses.
func (p *Pool) room() int { return 1 << (linkBits - p.subnet.Bits()) }

// addresses returns both ends of a slot's link.
func (p *Pool) addresses(slot int) (host, inside netip.Addr) {
	host = toAddr(toUint(p.subnet.Addr()) + 2*uint32(slot))
	return host, host.Next()
}

// Acquire makes a slot that may reach what the policy permits. The caller releases it.
func (p *Pool) Acquire(policy Policy) (_ *Slot, err error) {
	if err := policy.Check(); err != nil {
		return nil, err
	}
	if err := permitted(); err != nil {
		return nil, err
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	ns, err := NewNamespace()
	if err != nil {
		return nil, errors.Join(err, p.leave())
	}
	s := &Slot{pool: p, namespace: ns}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Release())
		}
	}()
	if err := s.furnish(policy); err != nil {
		return nil, err
	}
	if err := p.link(s); err != nil {
		return nil, err
	}
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, p.settleLink(s)
}

// enter counts one slot more and, with the first, installs the host's rules.
func (p *Pool) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filter == nil {
		if err := p.checkHost(); err != nil {
			return err
		}
		var err error
		if p.filter, err = installHostFilter(p.subnet); err != nil {
			return err
		}
	}
	p.slots++
	return nil
}

// leave counts one slot less and, with the last, removes the host's rules.
func (p *Pool) leave() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slots--; p.slots > 0 {
		return nil
	}
	err := p.filter.remove()
	p.filter = nil
	return err
}

// checkHost refuses a host whose own configuration stands in the way. It is the administrator's, so it is not changed here.
func (p *Pool) checkHost() error {
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return fmt.Errorf("asking whether the host forwards packets: %w", err)
	}
	if strings.TrimSpace(string(forward)) == "0" {
		return unable("sudo sysctl -w net.ipv4.ip_forward=1", "the host does not forward packets between networks")
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening the host's network configuration: %w", err)
	}
	defer h.Close()
	var routes []netlink.Route
	for tries := 0; ; tries++ {
		routes, err = h.RouteList(nil, netlink.FAMILY_V4)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 10 { // by changes meanwhile: some may be missing
			break
		}
	}
	if err != nil {
		return fmt.Errorf("reading the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if !ok || ones == 0 || !p.subnet.Overlaps(netip.PrefixFrom(addr, ones)) {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil && !strings.HasPrefix(link.Attrs().Name, LinkPrefix) {
			return unable("choose a network that is free here by SPORE_TAP_SUBNET", "the host has a route to %s by %s, and slots have their addresses in %s", r.Dst, link.Attrs().Name, p.subnet)
		}
	}
	return nil
}

// link gives the slot a number, by making the link that is named after it, and connects the link's one end to the host.
func (p *Pool) link(s *Slot) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening the host's network configuration: %w", err)
	}
	defer h.Close()
	for {
		if s.number, err = p.free(h); err != nil {
			return err
		}
		err = h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: s.LinkName()}, PeerName: uplinkName, PeerNamespace: netlink.NsFd(s.namespace.Fd())})
		if !errors.Is(err, unix.EEXIST) { // somebody else was faster
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return unable("sudo modprobe veth", "linking the namespace with the host: %w", err)
	}
	if err != nil {
		return fmt.Errorf("linking the namespace with the host by %s: %w", s.LinkName(), err)
	}
	link, err := h.LinkByName(s.LinkName())
	if err != nil {
		return fmt.Errorf("finding %s: %w", s.LinkName(), err)
	}
	s.link = link.Attrs().Index
	if err := withoutIPv6(s.LinkName()); err != nil {
		return err
	}
	if err := setSysctl("ipv4/conf/"+s.LinkName()+"/forwarding", "1"); err != nil {
		return err
	}
	host, _ := p.addresses(s.number)
	return bringUp(h, link, netip.PrefixFrom(host, linkBits))
}

// settleLink settles the host's end of a link whose other end is up.
func (p *Pool) settleLink(s *Slot) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening the host's network configuration: %w", err)
	}
	defer h.Close()
	return settle(h, s.LinkName())
}

// free returns the lowest number that no slot of this host has.
func (p *Pool) free(h *netlink.Handle) (int, error) {
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // of a list that is not up to date the next attempt learns
		return 0, fmt.Errorf("listing the host's links: %w", err)
	}
	taken := make(map[int]bool)
	for _, l := range links {
		if text, ok := strings.CutPrefix(l.Attrs().Name, LinkPrefix); ok {
			if n, err := strconv.Atoi(text); err == nil {
				taken[n] = true
			}
		}
	}
	for n := range p.room() {
		if !taken[n] {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all %d slots of %s are taken: choose a larger network by SPORE_TAP_SUBNET", p.room(), p.subnet)
}

// deleteLink removes a link of the host's; one that is gone is fine.
func (p *Pool) deleteLink(index int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	err = h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
