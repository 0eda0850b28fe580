package network_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/networktest"
)

func TestSlotReachesWhatItsPolicyPermits(t *testing.T) {
	const near, far, other, metadata = networktest.Near, networktest.Far, networktest.Other, networktest.Metadata
	world(t)
	for _, c := range []struct{ name, allow, deny, open, closed string }{
		{"everything", "", "", near + " " + far + " " + other, ""},
		{"an allow list is all there is", far + " 192.0.2.0/24", "", far + " " + other, near},
		{"a deny list leaves the rest", "", far + "/32 192.0.2.0/25", near, far + " " + other},
		{"allowed are exceptions from denied", "192.0.2.8/29", "192.0.2.0/24 " + far, near + " " + other, far},
		{"the same in both is allowed", far, far, far + " " + near, ""},
		{"all denied but one", near, "0.0.0.0/0", near, far + " " + other},
		{"all allowed", "0.0.0.0/0", "", near + " " + far + " " + other, ""},
		{"all denied", "", "0.0.0.0/0", "", near + " " + far + " " + other},
		{"the upper half of all", "128.0.0.0/1", "0.0.0.0/1", near + " " + far, ""},
		{"neighbours and overlaps", "198.51.100.0/25 198.51.100.128/25 198.51.100.6/31 198.51.100.0/24", "", far, near + " " + other},
	} {
		t.Run(c.name, func(t *testing.T) {
			machine := plug(t, acquire(t, pool(t), policy(t, c.allow, c.deny)))
			for _, address := range strings.Fields(c.open) {
				reaches(t, machine, address)
			}
			for _, address := range append(strings.Fields(c.closed), metadata) {
				refused(t, machine, address)
			}
		})
	}
}

// TestPolicyChanges has a machine that is connected while what it may reach changes.
func TestPolicyChanges(t *testing.T) {
	w := world(t)
	slot := acquire(t, pool(t), network.Policy{})
	machine := plug(t, slot)
	open := map[string]net.Conn{}
	for _, address := range []string{networktest.Near, networktest.Far} {
		open[address] = converse(t, w, machine, address)
	}
	for _, c := range []struct{ allow, deny, open, closed string }{
		{networktest.Near, "0.0.0.0/0", networktest.Near, networktest.Far + " " + networktest.Other},
		{"", "", networktest.Near + " " + networktest.Far + " " + networktest.Other, ""},
		{networktest.Far, "", networktest.Far, networktest.Near},
	} {
		if err := slot.SetPolicy(policy(t, c.allow, c.deny)); err != nil {
			t.Fatal(err)
		}
		for _, address := range strings.Fields(c.open) {
			reaches(t, machine, address)
		}
		for _, address := range append(strings.Fields(c.closed), networktest.Metadata) {
			refused(t, machine, address)
		}
		for address, conn := range open {
			err := says(conn)
			if closed := strings.Contains(c.closed, address); closed != (err != nil) {
				t.Errorf("allow %q, deny %q: the connection to %s that was there: %v", c.allow, c.deny, address, err)
			}
			if err != nil {
				delete(open, address)
			}
		}
	}
	if len(open) > 0 {
		t.Errorf("in the end there are connections to %v", open)
	}
	if err := slot.SetPolicy(network.Policy{Allow: network.Blocked()}); err == nil {
		t.Error("what no slot may reach was allowed")
	}
}

// converse connects a machine to a server of the world's that repeats what it is told.
func converse(t *testing.T, w *networktest.World, machine *os.File, address string) (conn net.Conn) {
	t.Helper()
	err := network.Within(w.Namespace(), func() error {
		l, err := net.Listen("tcp4", net.JoinHostPort(address, "7"))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			if conn, err := l.Accept(); err == nil {
				io.Copy(conn, conn)
				conn.Close()
			}
		}()
		return network.Within(machine, func() error {
			conn, err = net.DialTimeout("tcp4", l.Addr().String(), patience)
			return err
		})
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		err = says(conn)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// says checks that the other end of a conversation answers.
func says(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

func TestLongestPolicy(t *testing.T) {
	world(t)
	var list []string
	for i := range 511 {
		list = append(list, fmt.Sprintf("10.%d.%d.0/24", i>>7, i&127*2))
	}
	p, err := network.ParsePolicy(append(list, networktest.Far), list)
	if err != nil {
		t.Fatal(err)
	}
	p.Deny = append(p.Deny, policy(t, "", "0.0.0.0/0").Deny...)
	machine := plug(t, acquire(t, pool(t), p))
	reaches(t, machine, networktest.Far)
	refused(t, machine, networktest.Near)
}

// TestSlotsAreAlone has services at every address of the host and of a slot that another slot's machine could try.
func TestSlotsAreAlone(t *testing.T) {
	w := world(t)
	p := pool(t)
	one, two := acquire(t, p, network.Policy{}), acquire(t, p, network.Policy{})
	if one.Number() == two.Number() {
		t.Fatalf("both slots are number %d", one.Number())
	}
	machine, other := plug(t, one), plug(t, two)
	reaches(t, machine, networktest.Near)
	reaches(t, other, networktest.Near)

	serve := func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", networktest.Port))
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}
	for _, err := range []error{serve(), network.Within(other, serve), network.Within(two.Namespace(), serve)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for number := range 2 {
		for _, address := range ends(number) {
			refused(t, machine, address)
		}
	}
	refused(t, machine, networktest.Host)
	refused(t, machine, network.Gateway)
	reaches(t, machine, networktest.Near)

	// Nor does the world reach a slot, even if it knows the way. What would answer is there: the namespace's own service.
	err := network.Within(w.Namespace(), func() error { return networktest.Route(network.DefaultSubnet.String(), networktest.Host) })
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range ends(1) {
		if _, err := networktest.Dial(w.Namespace(), "tcp4", address, quiet); err == nil {
			t.Errorf("the world reaches %s", address)
		}
	}
}

// TestWhatLeavesIsHonest sends from an address that is not the machine's, then from its own: the first must not have come when the second has.
func TestWhatLeavesIsHonest(t *testing.T) {
	w := world(t)
	machine := plug(t, acquire(t, pool(t), network.Policy{}))
	err := network.Within(machine, func() error {
		if err := networktest.Up("lo", "203.0.113.77/32"); err != nil {
			return err
		}
		to := net.JoinHostPort(networktest.Far, fmt.Sprint(networktest.Port))
		for _, m := range []struct{ from, text string }{{"203.0.113.77", "false"}, {"169.254.0.21", "honest"}} {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(m.from)}}
			conn, err := d.Dial("udp4", to)
			if err != nil {
				return err
			}
			defer conn.Close()
			if m.text == "false" {
				if _, err := conn.Write([]byte(m.text)); err != nil {
					return err
				}
				continue
			}
			for deadline := time.Now().Add(patience); ; { // a datagram may be lost
				if _, err := conn.Write([]byte(m.text)); err != nil {
					return err
				}
				conn.SetReadDeadline(time.Now().Add(time.Second))
				_, err := conn.Read(make([]byte, 64))
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("waiting for the honest one's answer: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.Received("false") || !w.Received("honest") {
		t.Errorf("received: false %v, honest %v; want only the latter", w.Received("false"), w.Received("honest"))
	}
}

func TestNoIPv6(t *testing.T) {
	world(t)
	s := acquire(t, pool(t), network.Policy{})
	plug(t, s)
	look := func() error {
		addresses, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
		if err != nil {
			return err
		}
		for _, a := range addresses {
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if err != nil {
				return err
			}
			if name := link.Attrs().Name; name == s.LinkName() || name == "eth0" || name == network.TapName {
				t.Errorf("%s has the address %s", name, a.IPNet)
			}
		}
		return nil
	}
	if err := errors.Join(look(), network.Within(s.Namespace(), look)); err != nil {
		t.Fatal(err)
	}
}

// TestTapIsTheSameEverywhere holds what a snapshot relies on.
func TestTapIsTheSameEverywhere(t *testing.T) {
	world(t)
	p := pool(t)
	var macs []string
	for range 2 {
		s := acquire(t, p, network.Policy{})
		if err := network.Within(s.Namespace(), func() error {
			link, err := netlink.LinkByName(s.Name())
			if err == nil {
				macs = append(macs, link.Attrs().HardwareAddr.String())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		first, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := s.Open(); !errors.Is(err, unix.EBUSY) {
			t.Errorf("two VMMs on one tap: %v, %v", second, err)
		}
		first.Close()
		again, err := s.Open() // as after a VMM that failed to start
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	}
	if macs[0] != macs[1] {
		t.Errorf("gateways have the addresses %v: a woken guest would look for that of another slot", macs)
	}
}

// ends are the addresses of both ends of a slot's link.
func ends(slot int) []string {
	return []string{fmt.Sprintf("10.219.0.%d", 2*slot), fmt.Sprintf("10.219.0.%d", 2*slot+1)}
}
