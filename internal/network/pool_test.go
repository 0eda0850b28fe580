package network_test

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/networktest"
)

func TestCyclesLeaveNothing(t *testing.T) {
	world(t)
	p := pool(t)
	before := remains(t)
	for i := range 50 {
		s, err := p.Acquire(policy(t, "192.0.2.0/24", ""))
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		if s.Number() != 0 {
			t.Fatalf("cycle %d: slot %d, though 0 is free again", i, s.Number())
		}
		if left := remains(t); !slices.Contains(left, "link spore-0") || len(tables(t)) != 1 {
			t.Fatalf("cycle %d: with a slot there are %v", i, left)
		}
		if err := errors.Join(s.Release(), s.Release()); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
	}
	if left := remains(t); !slices.Equal(left, before) {
		t.Errorf("left: %v; before: %v", left, before)
	}
}

func TestSlotsAtOnce(t *testing.T) {
	world(t)
	pools := []*network.Pool{pool(t), pool(t)} // like two processes
	var slots [12]*network.Slot
	var wait sync.WaitGroup
	for i := range slots {
		wait.Go(func() {
			s, err := pools[i%2].Acquire(network.Policy{})
			if err != nil {
				t.Error(err)
				return
			}
			slots[i] = s
		})
	}
	wait.Wait()
	t.Cleanup(func() {
		for _, s := range slots {
			if s != nil {
				s.Release()
			}
		}
	})
	if t.Failed() {
		return
	}
	var numbers []int
	for _, s := range slots {
		numbers = append(numbers, s.Number())
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		if i != n {
			t.Fatalf("numbers of %d slots: %v", len(slots), numbers)
		}
	}
	machine := plug(t, slots[3])
	reaches(t, machine, networktest.Far)
	if n := len(tables(t)); n != 2 {
		t.Errorf("%d tables for two pools", n)
	}
	for i := range slots {
		wait.Go(func() {
			if i != 3 {
				if err := slots[i].Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	reaches(t, machine, networktest.Far)
	if err := slots[3].Release(); err != nil {
		t.Error(err)
	}
}

// TestOwnerKilled kills a process that has slots: all that it had goes with it, and what others have stays.
func TestOwnerKilled(t *testing.T) {
	world(t)
	mine := acquire(t, pool(t), network.Policy{})
	before := remains(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerEnv+"=3")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the owner says %q: %v", line, err)
	}
	if n := len(remains(t)); n != len(before)+4 {
		t.Fatalf("with three slots of another process there are %v", remains(t))
	}
	if s := acquire(t, pool(t), network.Policy{}); s.Number() != 4 {
		t.Errorf("slot %d, though another process has 1 to 3", s.Number())
	} else if err := s.Release(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); !slices.Equal(remains(t), before); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left by a killed process: %v; before: %v", remains(t), before)
		}
	}
	reaches(t, plug(t, mine), networktest.Near)
}

func TestFullPool(t *testing.T) {
	world(t)
	p, err := network.NewPool(netip.MustParsePrefix("10.219.0.0/30"))
	if err != nil {
		t.Fatal(err)
	}
	acquire(t, p, network.Policy{})
	acquire(t, p, network.Policy{})
	before := remains(t)
	if _, err := p.Acquire(network.Policy{}); err == nil || !strings.Contains(err.Error(), "all 2 slots") {
		t.Errorf("a third slot of two: %v", err)
	}
	if left := remains(t); !slices.Equal(left, before) {
		t.Errorf("a slot that could not be made leaves %v; before: %v", left, before)
	}
}

func TestUnable(t *testing.T) {
	world(t)
	for _, c := range []struct {
		name, hint string
		spoil      func() (mend func() error, err error)
	}{
		{"no forwarding", "sysctl -w net.ipv4.ip_forward=1", func() (func() error, error) {
			const setting = "/proc/sys/net/ipv4/ip_forward"
			return func() error { return os.WriteFile(setting, []byte("1"), 0) }, os.WriteFile(setting, []byte("0"), 0)
		}},
		{"addresses in use", "SPORE_TAP_SUBNET", func() (func() error, error) {
			_, dst, err := net.ParseCIDR("10.219.128.0/24")
			route := &netlink.Route{Dst: dst, Gw: netip.MustParseAddr(networktest.Near).AsSlice()}
			return func() error { return netlink.RouteDel(route) }, errors.Join(err, netlink.RouteAdd(route))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mend, err := c.spoil()
			if err != nil {
				t.Fatal(err)
			}
			p, before := pool(t), remains(t)
			for _, err := range []error{p.Check(), second(p.Acquire(network.Policy{}))} {
				if !errors.Is(err, network.ErrUnable) || !strings.Contains(err.Error(), c.hint) {
					t.Errorf("error %v, want a hint of %q", err, c.hint)
				}
			}
			if left := remains(t); !slices.Equal(left, before) {
				t.Errorf("left: %v; before: %v", left, before)
			}
			if err := mend(); err != nil {
				t.Fatal(err)
			}
			if err := p.Check(); err != nil {
				t.Errorf("when it is mended: %v", err)
			}
			acquire(t, p, network.Policy{})
		})
	}
}

// TestWithoutPrivilege gives up each privilege on a thread of its own.
func TestWithoutPrivilege(t *testing.T) {
	world(t)
	p, before := pool(t), remains(t)
	for _, c := range []struct {
		name string
		bit  uint32
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}} {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				done <- err
				return
			}
			data[c.bit/32].Effective &^= 1 << (c.bit % 32)
			if err := unix.Capset(&header, &data[0]); err != nil {
				done <- err
				return
			}
			done <- second(p.Acquire(network.Policy{}))
		}()
		if err := <-done; !errors.Is(err, network.ErrUnable) || !strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), "root") {
			t.Errorf("without %s: %v", c.name, err)
		}
	}
	if left := remains(t); !slices.Equal(left, before) {
		t.Errorf("left: %v; before: %v", left, before)
	}
}

func TestSubnets(t *testing.T) {
	for _, text := range []string{"10.0.0.1/16", "10.0.0.0/32", "0.0.0.0/0", "fd00::/64"} {
		if _, err := network.NewPool(netip.MustParsePrefix(text)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	if lacking != nil {
		b.Skip(lacking)
	}
	w, err := networktest.NewWorld()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	p, err := network.NewPool(network.DefaultSubnet)
	if err != nil {
		b.Fatal(err)
	}
	keep, err := p.Acquire(network.Policy{}) // so that the host's rules stay
	if err != nil {
		b.Fatal(err)
	}
	defer keep.Release()
	var release time.Duration
	for b.Loop() {
		s, err := p.Acquire(network.Policy{})
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if err := s.Release(); err != nil {
			b.Fatal(err)
		}
		release += time.Since(begin)
	}
	b.ReportMetric(float64(release.Nanoseconds())/float64(b.N), "ns/release")
}
