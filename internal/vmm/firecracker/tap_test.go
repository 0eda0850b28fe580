package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// slots hands out slots of a host that is a namespace of the test's own.
func slots(t *testing.T) func() *network.Slot {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("tap interfaces take root")
	}
	host, err := network.NewNamespace()
	if err != nil {
		t.Skipf("this machine lets the tests make no network namespace: %v", err)
	}
	t.Cleanup(func() { host.Close() })
	pool, err := network.NewPool(network.DefaultSubnet)
	if err != nil {
		t.Fatal(err)
	}
	forward := func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }
	if err := network.Within(host, forward); err != nil {
		t.Fatal(err)
	}
	return func() (s *network.Slot) {
		t.Helper()
		err := network.Within(host, func() (err error) {
			s, err = pool.Acquire(network.Policy{})
			return err
		})
		if errors.Is(err, network.ErrUnable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := network.Within(host, s.Release); err != nil {
				t.Error(err)
			}
		})
		return s
	}
}

// renamed is a slot whose tap interface has another name than that of all others.
type renamed struct {
	*network.Slot
	name string
}

func (r renamed) Name() string { return r.name }

func rename(t *testing.T, s *network.Slot, name string) vmm.Tap {
	t.Helper()
	err := network.Within(s.Namespace(), func() error {
		link, err := netlink.LinkByName(s.Name())
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, name), netlink.LinkSetUp(link))
	})
	if err != nil {
		t.Fatal(err)
	}
	return renamed{s, name}
}

// attached tells whether somebody has attached to a tap interface.
func attached(t *testing.T, tap vmm.Tap) bool {
	t.Helper()
	var flags uint32
	err := network.Within(tap.Namespace(), func() error {
		link, err := netlink.LinkByName(tap.Name())
		if err == nil {
			flags = link.Attrs().RawFlags
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.IFF_LOWER_UP != 0
}

// TestTap has a real Firecracker, free and in a jail, attach to the tap interface of one slot, and its thawed machine to that of another, which has another name.
func TestTap(t *testing.T) {
	for what, engine := range map[string]func(t *testing.T) *Engine{
		"free": func(t *testing.T) *Engine { return New(Programs{Binary: realBinary(t)}, nil) },
		"jailed": func(t *testing.T) *Engine {
			binary, jail := realJail(t)
			return New(Programs{Binary: binary}, &jail)
		},
	} {
		t.Run(what, func(t *testing.T) {
			e, slot := engine(t), slots(t)
			on := func(c vmm.Config, tap vmm.Tap) *Machine {
				t.Helper()
				if attached(t, tap) {
					t.Errorf("somebody has %s already", tap.Name())
				}
				c.Network, c.Tap = vmm.NetTap, tap
				m := start(t, e, c)
				if !attached(t, tap) {
					t.Errorf("nobody has attached to %s", tap.Name())
				}
				if there, want := namespaceOf(t, fmt.Sprintf("/proc/%d/ns/net", m.PID())), namespaceOf(t, fmt.Sprintf("/proc/self/fd/%d", tap.Namespace().Fd())); there != want {
					t.Errorf("the machine is in %s, its tap interface in %s", there, want)
				}
				return m
			}
			c := config(t)
			first := slot()
			m := on(c, first)
			vmmtest.WaitCount(t, m, 1<<14)
			state, memory, _ := vmmtest.Freeze(t, m, c.Memory)
			count := vmmtest.Count(t, m)
			other := rename(t, slot(), "tap9")
			woken := on(thawed(t, state, memory), other) // beside the first, which has not let go of its own
			vmmtest.WaitCount(t, woken, count)
			for _, m := range []*Machine{m, woken} {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
			if attached(t, first) || attached(t, other) {
				t.Error("an ended machine has its tap interface")
			}
			if what == "free" {
				return // as root it would make the interface that is missing
			}
			missing := config(t)
			missing.Network, missing.Tap = vmm.NetTap, renamed{first, "nosuchtap"}
			if m, err := e.Start(t.Context(), missing); err == nil {
				m.Close()
				t.Error("a machine starts without its tap interface")
			} else if !strings.Contains(err.Error(), "nosuchtap") && !strings.Contains(err.Error(), "/network-interfaces/net0") {
				t.Errorf("without its tap interface: %v", err)
			}
			if left, err := filepath.Glob(filepath.Join(missing.Dir, "*")); err != nil || len(left) > 0 {
				t.Errorf("left in the machine's folder: %v (%v)", left, err)
			}
		})
	}
}

// namespaceOf returns the name that the kernel gives a namespace.
func namespaceOf(t *testing.T, path string) string {
	t.Helper()
	name, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return name
}
