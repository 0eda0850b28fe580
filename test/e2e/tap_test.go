package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/networktest"
)

// enterIsolation moves the test's goroutine, and the processes that it starts, to a network namespace that stands for the host's.
func enterIsolation(t *testing.T) {
	t.Helper()
	ns, err := network.NewNamespace()
	if err != nil {
		t.Skipf("this machine lets the tests make no network namespace: %v", err)
	}
	defer ns.Close()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Errorf("leaving the namespace: %v", err)
			return // the thread ends with the test
		}
		home.Close()
		runtime.UnlockOSThread()
	})
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	internet, err := networktest.NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := internet.Close(); err != nil {
			t.Error(err)
		}
	})
}

// ask is a command that asks a server of the world's whom it sees.
func ask(address string) string { return fmt.Sprintf("nc -w 30 %s %d", address, networktest.Port) }

// slotLinks are the links of slots that are there.
func slotLinks(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, network.LinkPrefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// TestTap has real machines talk to servers beyond a host that the test made, through all that spore puts between.
func TestTap(t *testing.T) {
	w := newWorld(t)
	enterIsolation(t)
	run, err := os.MkdirTemp("", "spore-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	env := append(os.Environ(), "SPORE_STORE="+w.store, "SNAPSHOT_CACHE_DIR="+w.cache, "SANDBOX_DIR="+run, "HOST_KERNELS_DIR="+guest.KernelsDir(os.Getenv))
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(w.bin, "spore"), args...)
		cmd.Env = env
		return cmd
	}
	spore := func(args ...string) (string, error) {
		out, err := command(args...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := spore("create", "dir:"+w.image, "-t", "tap", "--net", "tap", "--run", ask(networktest.Far)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	// Whom the world sees is the host, and the machine has the address of all machines, a hardware address of its own, and name servers.
	facts := ask(networktest.Near) + "; ip -4 addr show dev eth0; cat /sys/class/net/eth0/address; grep -c nameserver /etc/resolv.conf"
	var macs []string
	for range 2 {
		out, err := spore("run", "tap", "--", "sh", "-c", facts)
		if err != nil || !strings.HasPrefix(out, networktest.Host+"\n") || !strings.Contains(out, network.GuestAddress) {
			t.Fatalf("%v\n%s", err, out)
		}
		lines := strings.Split(out, "\n")
		macs = append(macs, lines[len(lines)-2])
	}
	if macs[0] == macs[1] || !strings.HasPrefix(macs[0], "02:") {
		t.Errorf("two machines have the hardware addresses %v", macs)
	}

	for _, c := range []struct {
		args    []string
		address string
		open    bool
	}{
		{nil, networktest.Metadata, false},
		{[]string{"--allow-net", networktest.Far}, networktest.Far, true},
		{[]string{"--allow-net", networktest.Far}, networktest.Near, false},
		{[]string{"--deny-net", "198.51.100.0/24,192.0.2.0/24"}, networktest.Far, false},
		{[]string{"--deny-net", "0.0.0.0/0", "--allow-net", "198.51.100.0/24"}, networktest.Far, true},
	} {
		out, err := spore(append(append([]string{"run"}, c.args...), "tap", "--", "sh", "-c", ask(c.address))...)
		if c.open && (err != nil || out != networktest.Host) {
			t.Errorf("%v, asking %s: %v\n%s", c.args, c.address, err, out)
		}
		if !c.open && (err == nil || !strings.Contains(out, "refused")) {
			t.Errorf("%v, asking %s: %v\n%s\nwant: refused", c.args, c.address, err, out)
		}
	}
	if left := slotLinks(t); len(left) > 0 {
		t.Errorf("left of machines that have ended: %v", left)
	}

	// A spore that is killed takes its machine's network along.
	cmd := command("run", "tap", "--", "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not so after %v: %s", patience, what)
			}
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	wait("a slot is there, with a VMM", func() bool {
		records, _ := filepath.Glob(filepath.Join(run, "*", "vmm"))
		return len(records) == 1 && len(slotLinks(t)) == 1
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	wait("the slot is gone", func() bool { return len(slotLinks(t)) == 0 })
	if out, err := spore("run", "tap", "--", "true"); err != nil {
		t.Errorf("after a crash: %v\n%s", err, out)
	}

	testReach(t, command, filepath.Join(run, "daemon.sock"), wait)

	// What nothing would enforce is refused.
	var exit *exec.ExitError
	if out, err := spore("create", "dir:"+w.image, "--allow-net", networktest.Far); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, "tap") {
		t.Errorf("a list without a tap: %v\n%s", err, out)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := spore("run", "tap", "--", "true"); err == nil || !strings.Contains(out, "sysctl -w net.ipv4.ip_forward=1") {
		t.Errorf("without forwarding: %v\n%s", err, out)
	}
}

// testReach changes what a running sandbox may reach, and looks from inside; its forks may then reach the same.
func testReach(t *testing.T, command func(...string) *exec.Cmd, socket string, wait func(string, func() bool)) {
	// The namespace that stands for the host has no loopback.
	daemon := command("serve", "--listen", "0.0.0.0:0", "--state", t.TempDir(), "--on-exit", "kill", "--pool", "tap=1")
	daemon.Stderr = t.Output()
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		daemon.Process.Signal(os.Interrupt)
		if err := daemon.Wait(); err != nil {
			t.Errorf("the daemon: %v", err)
		}
		if left := slotLinks(t); len(left) > 0 {
			t.Errorf("left of its machines: %v", left)
		}
	}()
	wait("a daemon listens", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	only := func(args ...string) string {
		t.Helper()
		out, err := command(args...).Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	id := only("fork", "tap")
	look := func(id, address string, open bool) {
		t.Helper()
		out, err := command("exec", id, "--", "sh", "-c", ask(address)).CombinedOutput()
		if open && (err != nil || strings.TrimSpace(string(out)) != networktest.Host) || !open && (err == nil || !strings.Contains(string(out), "refused")) {
			t.Errorf("asking %s, which is to be open: %v: %v\n%s", address, open, err, out)
		}
	}
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	call := func(method, path, body string, want int) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://spore"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s %s %s: %s %s %v", method, path, body, res.Status, text, err)
		}
		return string(text)
	}
	tell := func(body string) {
		t.Helper()
		call(http.MethodPut, "/sandboxes/"+id+"/network", body, http.StatusNoContent)
	}
	look(id, networktest.Far, true)
	tell(`{"denyOut":["198.51.100.0/24"]}`)
	look(id, networktest.Far, false)
	look(id, networktest.Near, true)
	tell(`{"allow_internet_access":false,"allowOut":["198.51.100.0/24"]}`)
	look(id, networktest.Far, true)
	look(id, networktest.Near, false)
	// It stays so in a fork, and in sleep.
	look(only("fork", id), networktest.Near, false)
	only("pause", id)
	only("wake", id)
	look(id, networktest.Near, false)
	tell(`{}`)
	look(id, networktest.Near, true)
	// One that waits in a pool is told before it goes on.
	wait("one waits", func() bool {
		return strings.Contains(call(http.MethodGet, "/templates/tap", "", http.StatusOK), `"pool":1`)
	})
	made := call(http.MethodPost, "/v2/sandboxes", `{"templateID":"tap","network":{"denyOut":["198.51.100.0/24"]}}`, http.StatusCreated)
	_, pooled, _ := strings.Cut(made, `"sandboxID":"`)
	pooled, _, _ = strings.Cut(pooled, `"`)
	if about := call(http.MethodGet, "/sandboxes/"+pooled, "", http.StatusOK); !strings.Contains(about, `"pooled":true`) {
		t.Errorf("it did not wait: %s", about)
	}
	look(pooled, networktest.Far, false)
	look(pooled, networktest.Near, true)
}
