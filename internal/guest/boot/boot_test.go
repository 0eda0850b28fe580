package boot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
)

const (
	machineID   = "0123456789abcdef0123456789abcdef"
	maxAgentRSS = 20 << 20
	maxAgent    = 10 << 20
	clockError  = 50 * time.Millisecond
)

func identity(host string) api.Identity {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	return api.Identity{
		Generation: uuid.NewString(), Epoch: 1, Time: time.Now().UnixNano(), Entropy: entropy, Hostname: host, MachineID: machineID,
	}
}

// patience is how long an emulated guest on a busy machine may take for what takes moments on an idle one. Nothing waits so long but a test that fails.
const patience = 2 * time.Minute

func patiently(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// wake wakes the guest and checks the clock against the host's.
func wake(t *testing.T, c *guest.Client, id api.Identity) api.WakeReport {
	t.Helper()
	r, err := c.Wake(patiently(t), id)
	if err != nil {
		t.Fatalf("wake: %v", err)
	}
	checkClock(t, c)
	return r
}

// checkClock compares clocks. The guest's answer is from some moment between the question and its arrival.
func checkClock(t *testing.T, c *guest.Client) {
	t.Helper()
	for tries := 0; ; tries++ {
		before := time.Now()
		stats, err := c.Stats(patiently(t))
		if err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		if after.Sub(before) > clockError/2 && tries < 20 {
			continue // too slow an answer says nothing
		}
		at := time.Unix(0, stats.Time)
		if limit := max(clockError, c.ClockSlack()); at.Before(before.Add(-limit)) || at.After(after.Add(limit)) {
			t.Errorf("the guest's clock is off: %v, asked at %v, answered at %v", at, before, after)
		}
		return
	}
}

func read(t *testing.T, c *guest.Client, path string) string {
	t.Helper()
	r, _, err := c.ReadFile(patiently(t), path)
	if err != nil {
		t.Fatalf("reading %s: %v", path, err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("reading %s: %v", path, err)
	}
	return string(text)
}

func run(t *testing.T, c *guest.Client, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	p, err := c.Start(patiently(t), guest.Command{Args: args, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	status, err := p.Wait()
	if err != nil || !status.Success() {
		t.Fatalf("%v: %v, %v\n%s", args, status, err, errs.String())
	}
	return out.String()
}

// eventually waits for a condition of the guest.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so within %v: %s", patience, what)
		}
	}
}

func ticks(t *testing.T, c *guest.Client) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(read(t, c, "/run/ticks"), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// An image that has nothing but one program: no shell, no /etc, not even /dev or /proc.
func TestBareImage(t *testing.T) {
	needMachines(t)
	if n := len(shop.agent); n > maxAgent {
		t.Errorf("the agent has %d bytes: %d are allowed", n, maxAgent)
	}
	v := start(t, vmOptions{disk: disk(t, nil)})
	c := v.session()
	r := wake(t, c, identity("first"))
	if r.Thawed || r.Entropy != 64 {
		t.Errorf("report of the first wake: %+v", r)
	}
	t.Run("names", func(t *testing.T) { testNames(t, c) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, c) })
	t.Run("refused identities", func(t *testing.T) { testRefused(t, c) })

	ticker, err := c.Start(patiently(t), guest.Command{Args: []string{"/probe", "tick", "/run/ticks"}, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ticks", func() bool {
		_, err := c.Stat(t.Context(), "/run/ticks")
		return err == nil && ticks(t, c) > 2
	})
	t.Run("memory", func(t *testing.T) { testMemory(t, c) })
	t.Run("quiesce", func(t *testing.T) { testQuiesce(t, c) })
	ticker.Detach()
	c.Close()
	t.Run("sessions", func(t *testing.T) { testSessions(t, v) })
	t.Run("clones", func(t *testing.T) { testClones(t, v) })
	t.Run("death of process 1", func(t *testing.T) { testDeath(t, v) })
}

func testNames(t *testing.T, c *guest.Client) {
	for path, want := range map[string]string{
		"/etc/machine-id": machineID + "\n", "/etc/hostname": "first\n", "/proc/sys/kernel/hostname": "first\n",
		"/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tfirst\n",
	} {
		if got := read(t, c, path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	wake(t, c, identity("second"))
	if got := read(t, c, "/etc/hosts"); strings.Contains(got, "first") || !strings.Contains(got, "127.0.1.1\tsecond\n") {
		t.Errorf("hosts after a change of name: %q", got)
	}
	// The disk itself must not have been written: below the mounts are empty files.
	mounts := read(t, c, "/proc/mounts")
	for _, path := range []string{"/etc/machine-id", "/etc/hostname", "/etc/hosts"} {
		if !strings.Contains(mounts, " "+path+" tmpfs ") {
			t.Errorf("%s is not a mount:\n%s", path, mounts)
		}
	}
}

func testProcesses(t *testing.T, c *guest.Client) {
	status := run(t, c, "/probe", "status")
	for _, want := range []string{"SigIgn:\t0000000000000000\n", "0::/user\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the status of a process lacks %q:\n%s", want, status)
		}
	}
	run(t, c, "/probe", "orphan")
	eventually(t, "orphans end and are buried", func() bool { return run(t, c, "/probe", "orphans") == "" })

	stats, err := c.Stats(patiently(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("agent: %d bytes, %.1f MiB resident", len(shop.agent), float64(stats.AgentRSS)/(1<<20))
	if stats.AgentRSS > maxAgentRSS {
		t.Errorf("the agent has %d bytes resident: %d are allowed", stats.AgentRSS, maxAgentRSS)
	}

	p, err := c.Start(patiently(t), guest.Command{Args: []string{"/probe", "eat"}})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := p.Wait(); err != nil || !s.OOM {
		t.Errorf("a process that takes all memory: %+v, %v", s, err)
	}
	if err := c.Health(patiently(t)); err != nil {
		t.Errorf("the agent after the guest ran out of memory: %v", err)
	}
}

// What goes through the agent does not stay in it.
func testMemory(t *testing.T, c *guest.Client) {
	const size = 32 << 20
	begin := time.Now()
	if err := c.WriteFile(patiently(t), "/large", io.LimitReader(zeros{}, size), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	in := time.Since(begin)
	begin = time.Now()
	r, _, err := c.ReadFile(patiently(t), "/large")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); n != size || err != nil {
		t.Fatalf("%d bytes came back, %v", n, err)
	}
	out := time.Since(begin)
	stats, err := c.Stats(patiently(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB in %v into the guest and %v out of it; agent: %.1f MiB resident", size>>20, in, out, float64(stats.AgentRSS)/(1<<20))
	if stats.AgentRSS > maxAgentRSS {
		t.Errorf("the agent has %d bytes resident after a transfer: %d are allowed", stats.AgentRSS, maxAgentRSS)
	}
	if err := c.Remove(patiently(t), "/large"); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func testRefused(t *testing.T, c *guest.Client) {
	for what, change := range map[string]func(*api.Identity){
		"generation":   func(id *api.Identity) { id.Generation = "one" },
		"entropy":      func(id *api.Identity) { id.Entropy = id.Entropy[:31] },
		"much entropy": func(id *api.Identity) { id.Entropy = make([]byte, 513) },
		"hostname":     func(id *api.Identity) { id.Hostname = "a/b" },
		"long name":    func(id *api.Identity) { id.Hostname = strings.Repeat("a", 65) },
		"machine id":   func(id *api.Identity) { id.MachineID = "12" },
		"no interface": func(id *api.Identity) { id.Net = &api.Net{Address: "10.0.2.15/24"} },
	} {
		id := identity("refused")
		change(&id)
		if _, err := c.Wake(patiently(t), id); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func testQuiesce(t *testing.T, c *guest.Client) {
	r, err := c.Quiesce(patiently(t), api.QuiesceOptions{DropCaches: true, Compact: true, FreezeFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.Frozen != 1 {
		t.Errorf("%d processes are frozen, want 1", r.Frozen)
	}
	if r.MemUsed != r.MemTotal-r.MemFree || r.MemTotal < 250<<20 || r.MemUsed < 20<<20 || r.MemUsed > 150<<20 {
		t.Errorf("implausible counts of memory: %+v", r)
	}
	before := ticks(t, c)
	time.Sleep(200 * time.Millisecond)
	if after := ticks(t, c); after != before {
		t.Errorf("it ticks while quiet: %d, then %d", before, after)
	}
	written := make(chan error, 1)
	go func() {
		written <- c.WriteFile(t.Context(), "/written", strings.NewReader("hello"), guest.WriteOptions{})
	}()
	select {
	case err := <-written:
		t.Errorf("a write to a frozen file system ends: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if w := wake(t, c, identity("second")); !w.Thawed {
		t.Errorf("report of the wake after a quiesce: %+v", w)
	}
	if err := <-written; err != nil {
		t.Errorf("the write after the thaw: %v", err)
	}
	eventually(t, "it ticks again", func() bool { return ticks(t, c) > before })
}

// A host may come back at once, and it may go in the middle of a frame.
func testSessions(t *testing.T, v *vm) {
	for i := range 40 {
		c := guest.NewClient(v.dial("agent"))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		// As every host does, it begins with a wake: only so the guest can tell it from the rest of a frame that its predecessor has not ended.
		_, err := c.Wake(ctx, identity("second"))
		cancel()
		if err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		if i%4 == 3 {
			// An answer under way that nobody reads.
			go c.WriteFile(t.Context(), "/run/large", io.LimitReader(rand.Reader, 1<<20), guest.WriteOptions{})
			time.Sleep(time.Duration(i) * time.Millisecond)
		}
		c.Close()
	}
	// Not a client at all, gone without a word.
	conn := v.dial("agent")
	conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	time.Sleep(20 * time.Millisecond)
	conn.Close()
	time.Sleep(20 * time.Millisecond)
	c := guest.NewClient(v.dial("agent"))
	defer c.Close()
	wake(t, c, identity("second"))
}

func testClones(t *testing.T, v *vm) {
	c := v.session()
	var out bytes.Buffer
	p, err := c.Start(patiently(t), guest.Command{Args: []string{"/probe", "tick", "/run/alive"}, Detach: true, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	if _, err := c.Quiesce(patiently(t), api.QuiesceOptions{FreezeFilesystem: true}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	time.Sleep(50 * time.Millisecond)
	snapshot := v.freeze()
	time.Sleep(1200 * time.Millisecond) // the clones' clocks stand meanwhile

	drawn := map[string]string{}
	for _, name := range []string{"clone-a", "clone-b"} {
		w := start(t, vmOptions{from: snapshot})
		w.qmp.waitRunning()
		begin := time.Now()
		c := guest.NewClient(w.dial("agent"))
		defer c.Close()
		r, err := c.Wake(patiently(t), identity(name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s: woken in %v (guest: %v), clock moved by %v", name, time.Since(begin), time.Duration(r.Duration), time.Duration(r.ClockStep))
		checkClock(t, c)
		if !r.Thawed || time.Duration(r.ClockStep) < time.Second {
			t.Errorf("report of a clone's wake: %+v", r)
		}
		if got := read(t, c, "/etc/hostname"); got != name+"\n" {
			t.Errorf("a clone's name: %q", got)
		}
		if err := c.WriteFile(patiently(t), "/run/go", strings.NewReader(""), guest.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		number := run(t, c, "/probe", "random", "/run/go")
		if other, ok := drawn[number]; ok || len(number) != 65 {
			t.Errorf("%s draws the same random numbers as %s: %s", name, other, number)
		}
		drawn[number] = name
		var n, alive int
		eventually(t, "the process goes on in the clone", func() bool {
			before := n
			fmt.Sscan(read(t, c, "/run/alive"), &n, &alive)
			return before > 0 && n > before && alive == pid
		})
		if err := c.WriteFile(patiently(t), "/disk", strings.NewReader(name), guest.WriteOptions{}); err != nil {
			t.Errorf("writing to a clone's disk: %v", err)
		}
	}
	v.qmp.run("cont", nil)
	c = guest.NewClient(v.dial("agent")) // the guest learns of the old session's end and of this one's beginning together
	defer c.Close()
	wake(t, c, identity("original"))
}

func testDeath(t *testing.T, v *vm) {
	c := v.session()
	if _, err := c.Start(patiently(t), guest.Command{Args: []string{"/probe", "abort-init"}}); err != nil {
		t.Fatal(err)
	}
	v.ended()
	if !strings.Contains(v.log.String(), "SIGABRT") {
		t.Errorf("the console does not tell how process 1 died:\n%s", v.log)
	}
}

// A read-only image in the manner of a distribution with systemd, in a machine with a network.
func TestReadOnlyImageWithNetwork(t *testing.T) {
	needMachines(t)
	v := start(t, vmOptions{readOnly: true, network: true, disk: disk(t, func(root string) {
		for _, dir := range []string{"dev", "etc", "proc", "run", "sys", "usr/lib/systemd", "tmp"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range map[string]string{"etc/machine-id": "", "etc/hostname": "image\n", "etc/hosts": "127.0.0.1 localhost\n192.0.2.1 elsewhere"} {
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o444); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
	})})
	c := v.session()
	id := identity("reader")
	id.Net = &api.Net{MAC: "52:54:00:12:34:99", Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}}
	for range 2 { // a wake can be repeated
		wake(t, c, id)
		id.Time = time.Now().UnixNano()
	}
	for path, want := range map[string]string{
		"/etc/machine-id": machineID + "\n", "/etc/hostname": "reader\n", "/etc/resolv.conf": "nameserver 10.0.2.3\n",
		"/etc/hosts":                  "127.0.1.1\treader\n127.0.0.1 localhost\n192.0.2.1 elsewhere\n",
		"/sys/class/net/eth0/address": "52:54:00:12:34:99\n",
	} {
		if got := run(t, c, "/probe", "cat", path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if err := c.WriteFile(patiently(t), "/new", strings.NewReader("x"), guest.WriteOptions{}); err == nil {
		t.Error("a read-only disk takes a file")
	}

	// QEMU's user network leads its gateway's address to the host's loopback.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conn.Write([]byte("hello, guest"))
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, c, "/probe", "dial", net.JoinHostPort("10.0.2.2", port)); got != "hello, guest" {
		t.Errorf("over the network came %q", got)
	}
	for range 2 { // also without a freeze in between
		if _, err := c.Quiesce(patiently(t), api.QuiesceOptions{FreezeFilesystem: true}); err != nil {
			t.Fatal(err)
		}
	}
	id.Time = time.Now().UnixNano()
	wake(t, c, id)
}

// A guest that can't come up says why and ends its machine.
func TestFatal(t *testing.T) {
	needMachines(t)
	v := start(t, vmOptions{disk: disk(t, nil), args: "spore.roottype=nosuchfs"})
	v.ended()
	if want := "spore-agent: mounting /dev/vda (nosuchfs) as the root file system: no such device"; !strings.Contains(v.log.String(), want) {
		t.Errorf("the console lacks %q:\n%s", want, v.log)
	}
}
