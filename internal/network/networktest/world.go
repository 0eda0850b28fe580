// Package networktest is a small internet for tests: network namespaces with servers that tell whom they see. Nothing of it touches the host's own network.
package networktest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
)

// The world's addresses, all of them documentation ranges but for the metadata service, and the host's towards it.
const (
	Near     = "203.0.113.1"     // the world's end of the link
	Host     = "203.0.113.2"     // the host's
	Far      = "198.51.100.7"    // beyond
	Other    = "192.0.2.9"       // beyond, in another network
	Metadata = "169.254.169.254" // would be reached if nothing stood in the way
	Port     = 8080              // where servers listen at all of them, TCP and UDP
)

// Addresses are those at which the world answers.
func Addresses() []string { return []string{Near, Far, Other, Metadata} }

// isolatedEnv marks the process that runs in a namespace of its own.
const isolatedEnv = "SPORE_TEST_ISOLATED"

// Isolate runs this test binary again in a network namespace of its own, and returns its exit code; in the one that does run there it returns false at once.
// The reason says why the machine can't.
func Isolate() (code int, done bool, reason error) {
	if os.Getenv(isolatedEnv) != "" {
		return 0, false, nil
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal is of the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, false, fmt.Errorf("this machine lets the tests make no network namespace: %w", err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), true, nil
	}
	if err != nil {
		return 1, true, err
	}
	return 0, true, nil
}

// World is a namespace behind a link from this one, which plays the host.
type World struct {
	ns      *os.File
	closers []io.Closer
	wait    sync.WaitGroup

	mu       sync.Mutex
	received map[string]bool // contents of datagrams
}

// NewWorld makes the world beyond the namespace of this thread, which must be one that a test made, and has this namespace forward packets.
// Servers answer each connection, and each datagram, with the address that they see.
func NewWorld() (_ *World, err error) {
	w := &World{received: make(map[string]bool)}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.ns, err = network.NewNamespace(); err != nil {
		return nil, err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return nil, err
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "world"}, PeerName: "host", PeerNamespace: netlink.NsFd(w.ns.Fd())}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("linking the world: %w", err)
	}
	if err := Up("world", Host+"/24"); err != nil {
		return nil, err
	}
	for _, far := range []string{Far, Other, Metadata} {
		if err := Route(far+"/32", Near); err != nil {
			return nil, err
		}
	}
	return w, network.Within(w.ns, func() error {
		if err := Up("host", Near+"/24"); err != nil {
			return err
		}
		if err := Up("lo", Far+"/32", Other+"/32", Metadata+"/32"); err != nil {
			return err
		}
		// No route to the slots' own addresses: an answer comes only to who was hidden behind the host's.
		return w.serve()
	})
}

// Close removes the world.
func (w *World) Close() error {
	var errs []error
	for _, c := range w.closers {
		errs = append(errs, c.Close())
	}
	w.wait.Wait()
	// While the namespace is there: with it the kernel takes the link, at some time.
	if link, err := netlink.LinkByName("world"); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	if w.ns != nil {
		errs = append(errs, w.ns.Close())
	}
	return errors.Join(errs...)
}

// Namespace is where the servers are.
func (w *World) Namespace() *os.File { return w.ns }

// Received reports whether a datagram with that content has come.
func (w *World) Received(content string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.received[content]
}

func (w *World) serve() error {
	listener, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", Port))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, listener)
	w.wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, host(conn.RemoteAddr()))
			conn.Close()
		}
	})
	for _, addr := range Addresses() { // one each, so that the answer comes from where the question went
		packets, err := net.ListenPacket("udp4", fmt.Sprintf("%s:%d", addr, Port))
		if err != nil {
			return err
		}
		w.closers = append(w.closers, packets)
		w.wait.Go(func() {
			for p := make([]byte, 64); ; {
				n, from, err := packets.ReadFrom(p)
				if err != nil {
					return
				}
				w.mu.Lock()
				w.received[string(p[:n])] = true
				w.mu.Unlock()
				packets.WriteTo([]byte(host(from)+"\n"), from)
			}
		})
	}
	return nil
}

func host(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().String()
}

// Up gives a link of this namespace addresses and switches it on.
func Up(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s: %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	_, err = netlink.LinkByName(name) // has the kernel notice the carrier now
	return err
}

// Route adds a route to this namespace.
func Route(to, via string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
}

// Dial connects by "tcp4" or "udp4" from a namespace to an address of the world's, and returns what the server says: the address that it sees.
func Dial(ns *os.File, kind, address string, patience time.Duration) (seen string, err error) {
	err = network.Within(ns, func() error {
		conn, err := net.DialTimeout(kind, net.JoinHostPort(address, fmt.Sprint(Port)), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		if kind == "udp4" {
			seen, err = ask(conn, patience)
			return err
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		seen, err = hear(conn)
		return err
	})
	return seen, err
}

// resend is how long a datagram, or the answer to it, may take before it counts as lost: to a link that has no carrier yet, for one, or to the kernel's
// limit on how often it says that something is prohibited.
const resend = time.Second

// ask sends a datagram until there is an answer, or word that there will be none.
func ask(conn net.Conn, patience time.Duration) (seen string, err error) {
	for end := time.Now().Add(patience); ; {
		if err := conn.SetDeadline(time.Now().Add(resend)); err != nil {
			return "", err
		}
		if _, err = conn.Write([]byte("?")); err == nil {
			seen, err = hear(conn)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return seen, err
		}
	}
}

func hear(conn net.Conn) (string, error) {
	p := make([]byte, 64)
	n, err := conn.Read(p)
	return strings.TrimSpace(string(p[:n])), err
}
