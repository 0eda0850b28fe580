package network_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/networktest"
)

// ownerEnv makes the test binary a process that holds so many slots until it is killed.
const ownerEnv = "SPORE_TEST_SLOTS"

// lacking says why this machine can't run tests that need namespaces; nil: it can.
var lacking error

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(ownerEnv)); err == nil {
		log.Fatal(own(n))
	}
	code, done, err := networktest.Isolate()
	if !done {
		lacking = err
		code = m.Run()
	}
	os.Exit(code)
}

// own takes slots, says so, and waits for its end.
func own(n int) error {
	p, err := network.NewPool(network.DefaultSubnet)
	if err != nil {
		return err
	}
	for range n {
		if _, err := p.Acquire(network.Policy{}); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}

// world is the small internet beyond this process's own namespace.
func world(t *testing.T) *networktest.World {
	t.Helper()
	if lacking != nil {
		t.Skip(lacking)
	}
	w, err := networktest.NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func pool(t *testing.T) *network.Pool {
	t.Helper()
	p, err := network.NewPool(network.DefaultSubnet)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// acquire takes a slot for as long as the test runs.
func acquire(t *testing.T, p *network.Pool, policy network.Policy) *network.Slot {
	t.Helper()
	s, err := p.Acquire(policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Release(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func policy(t *testing.T, allow, deny string) network.Policy {
	t.Helper()
	p, err := network.ParsePolicy(strings.Fields(allow), strings.Fields(deny))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// plug puts a machine on a slot's tap: a namespace with a tap of its own, and frames carried between the two as a VMM does.
func plug(t *testing.T, s *network.Slot) *os.File {
	t.Helper()
	ours, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	guest, err := network.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	var theirs *os.File
	err = network.Within(guest, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		theirs = os.NewFile(uintptr(fd), "eth0")
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, network.MAC([16]byte{byte(s.Number())})); err != nil {
			return err
		}
		if err := networktest.Up("eth0", network.GuestAddress); err != nil {
			return err
		}
		return networktest.Route("0.0.0.0/0", network.Gateway)
	})
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pump := func(to, from *os.File) {
		for p := make([]byte, 1<<17); ; {
			n, err := from.Read(p)
			if err != nil {
				return
			}
			to.Write(p[:n])
		}
	}
	pumps.Go(func() { pump(ours, theirs) })
	pumps.Go(func() { pump(theirs, ours) })
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
		pumps.Wait()
		guest.Close()
	})
	return guest
}

// patience is how long an answer may take on a busy machine.
const patience = 30 * time.Second

// reaches checks that the world answers a machine, and sees the host.
func reaches(t *testing.T, machine *os.File, address string) {
	t.Helper()
	for _, kind := range []string{"tcp4", "udp4"} {
		seen, err := networktest.Dial(machine, kind, address, patience)
		if err != nil {
			t.Errorf("%s to %s: %v", kind, address, err)
		} else if seen != networktest.Host {
			t.Errorf("%s to %s: the world sees %s, want %s", kind, address, seen, networktest.Host)
		}
	}
}

// refused checks that a machine is told at once that it can't reach an address.
func refused(t *testing.T, machine *os.File, address string) {
	t.Helper()
	if seen, err := networktest.Dial(machine, "tcp4", address, patience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("tcp4 to %s: seen as %q, error %v; want a reset", address, seen, err)
	}
	if seen, err := networktest.Dial(machine, "udp4", address, patience); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("udp4 to %s: seen as %q, error %v; want that it is prohibited", address, seen, err)
	}
}

// remains lists what slots leave behind: their links in this namespace, tables of rules, and threads that have not come home.
func remains(t *testing.T) []string {
	t.Helper()
	var out []string
	links, err := whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, network.LinkPrefix) {
			out = append(out, "link "+l.Attrs().Name)
		}
	}
	for _, table := range tables(t) {
		out = append(out, "table "+table)
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		ns, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net")
		if err == nil && ns != home {
			out = append(out, "thread in "+ns)
		} else if err != nil {
			// One that ends just now says at times that nobody may look at it.
			if _, gone := os.Stat("/proc/self/task/" + thread.Name()); !errors.Is(gone, fs.ErrNotExist) && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range descriptors {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && (strings.HasPrefix(target, "net:") || target == "/dev/net/tun") {
			out = append(out, "descriptor of "+target)
		}
	}
	return out
}

// whole asks the kernel for a list until it gives one between whose parts nothing has changed: what has ended goes when it likes.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for deadline := time.Now().Add(patience); ; {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || time.Now().After(deadline) {
			return all, err
		}
	}
}

// tables lists the packet filter tables of this namespace that are spore's.
func tables(t *testing.T) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, table := range list {
		if strings.HasPrefix(table.Name, network.LinkPrefix) {
			names = append(names, table.Name)
		}
	}
	return names
}

// quiet is how long no answer counts as none. A busy machine makes such a test weaker, never wrong.
const quiet = 500 * time.Millisecond

// second is the error of a call that also returns something.
func second[T any](_ T, err error) error { return err }
