package pager

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/block"
)

// openFiles counts what this process has open whose kind, as the kernel names it, contains a word.
func openFiles(t *testing.T, kind string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if name, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.Contains(name, kind) {
			n++
		}
	}
	return n
}

// A machine whose process the Tracker can't get hold of, for want of descriptors, could
// not be ended should its pager die: it is ended now.
func TestNoHoldOfMachine(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "other")
	c := l.fork(i, "a")
	check(t, c, i.all(1, 1))
	l.mu.Lock()
	p := l.pagers[i.dir]
	l.mu.Unlock()
	l.until("the machine is known", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return p.claims["a"].process != nil
	})
	l.mu.Lock()
	p.claims["a"].process.close() // as if it had never come
	p.claims["a"].process = nil
	l.mu.Unlock()
	l.connected(p, message{Op: eventConnected, Fork: "a"})
	l.fails("a", "ulimit -n")
	l.dies(c)
	l.connected(p, message{Op: eventConnected, Fork: "nobody"})
	l.release("a")
	check(t, l.fork(i, "b"), i.all(2, 1))
}

// The same when a Tracker takes over: a fork whose machine it can't get hold of is not
// kept.
func TestNoHoldOfAdopted(t *testing.T) {
	tracker, err := NewTracker(Config{Command: []string{"true"}, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	p := newPager(tracker, "template")
	p.root = shortDir(t)
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(p.root, controlSocket), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	told := make(chan error, 1)
	go func() {
		conn, err := listener.AcceptUnix()
		if err != nil {
			told <- err
			return
		}
		defer conn.Close()
		w := newWire(conn)
		m, err := w.receive()
		for _, said := range []message{{Op: eventFork, Fork: "held"}, {Op: eventFork, Fork: "lost"}, {Op: eventConnected, Fork: "lost", PID: 1}, {Op: eventConnected, Fork: "nobody"}, m} {
			if err == nil {
				err = w.send(said)
			}
		}
		told <- err
	}()
	if err := p.meet(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.part()
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if p.claims["held"].failed || !p.claims["lost"].failed {
		t.Errorf("failed: %v and %v, want only the second", p.claims["held"].failed, p.claims["lost"].failed)
	}
}

// Pagers that can't start cost no descriptors.
func TestNoStartKeepsNothing(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	i.setFaults(t, faults{OpenError: "the tape is torn"})
	before := openFiles(t, "pidfd")
	for range 5 {
		if _, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: os.Geteuid()}); err == nil {
			t.Fatal("it has started")
		}
	}
	if after := openFiles(t, "pidfd"); after != before {
		t.Errorf("%d descriptors of processes before, %d after", before, after)
	}
}

// Two pagers of one template, as two Trackers have left them: one is kept, and of the
// other nothing.
func TestAdoptOneOfTwo(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	before := openFiles(t, "socket:")
	one, paths := l.startDaemon(i, "a")
	a := l.connect(i, paths[0])
	two, paths := l.startDaemon(i, "b")
	b := l.connect(i, paths[0])
	check(t, a, i.all(1, 1))
	check(t, b, i.all(1, 1))
	l.kill(one)
	l.kill(two)
	got := l.adopt("a", "b")
	if len(got.Adopted) != 1 || len(got.Ended) != 1 {
		t.Fatalf("%+v, want one of both", got)
	}
	kept, ended := a, b
	if got.Ended[0] == "a" {
		kept, ended = b, a
	}
	l.dies(ended)
	check(t, kept, i.all(2, 1))
	l.release(got.Adopted[0])
	if after := openFiles(t, "socket:"); after != before {
		t.Errorf("%d sockets before, %d after", before, after)
	}
}

// A note that can't be written leaves nothing half done.
func TestNoteFails(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "a")
	l.mu.Lock()
	p := l.pagers[i.dir]
	l.mu.Unlock()
	if err := os.Remove(p.notePath()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.notePath(), 0o700); err != nil { // over which nothing can be renamed
		t.Fatal(err)
	}
	p.note()
	if left, err := filepath.Glob(p.notePath() + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left is %v (%v)", left, err)
	}
}
