package pager

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
)

func TestIDs(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	other := newImage(t, mib, block.WriterOptions{})
	for _, f := range []struct {
		template, fork string
	}{{"", "a"}, {i.dir, ""}, {"", ""}} {
		if _, err := l.Acquire(t.Context(), f.template, Fork{ID: f.fork}); err == nil {
			t.Errorf("no error for template %q and fork %q", f.template, f.fork)
		}
	}
	if _, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: -1}); err == nil {
		t.Error("no error for user -1")
	}
	l.release("unknown")
	l.release("")
	first := l.acquire(i, "a")
	if again := l.acquire(i, "a"); again != first || l.Forks(i.dir) != 1 {
		t.Errorf("acquired again: %s and not %s; %d forks", again, first, l.Forks(i.dir))
	}
	if _, err := l.Acquire(t.Context(), other.dir, Fork{ID: "a"}); err == nil {
		t.Error("one fork of two templates")
	}
	if l.acquire(other, "b") == first || l.Forks(other.dir) != 1 {
		t.Error("two forks share a socket")
	}
	l.release("a")
	l.release("a")
	if l.Forks(i.dir) != 0 || l.Forks(other.dir) != 1 {
		t.Errorf("%d and %d forks", l.Forks(i.dir), l.Forks(other.dir))
	}
}

func TestSocketPathsAreShort(t *testing.T) {
	i := newImage(t, mib, block.WriterOptions{})
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	l := newLab(t, func(c *Config) { c.StateDir = filepath.Join(deep, "notes") })
	if path := l.acquire(i, strings.Repeat("long", 100)); len(path) >= 108 {
		t.Errorf("%s has %d bytes", path, len(path))
	}
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	l = newLab(t, func(c *Config) { c.StateDir, c.TempDir = filepath.Join(deep, "state"), deep })
	if path := l.acquire(i, "a"); len(path) >= 108 {
		t.Errorf("%s has %d bytes", path, len(path))
	}
}

// Nobody's socket, or file, is taken over.
func TestListenRefusesWhatIsThere(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(path, "unix", os.Geteuid()); err == nil {
		l.Close()
		t.Error("listening where a file is")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
		t.Errorf("the file holds %q (%v)", data, err)
	}
	if _, err := listen(filepath.Join(filepath.Dir(path), strings.Repeat("x", 108)), "unix", os.Geteuid()); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Error(err)
	}
}

func TestPagerCannotStart(t *testing.T) {
	i := newImage(t, mib, block.WriterOptions{})
	i.setFaults(t, faults{OpenError: "the tape is torn"})
	l := newLab(t)
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			if _, err := l.Acquire(t.Context(), i.dir, Fork{ID: fmt.Sprint(n)}); err == nil || !strings.Contains(err.Error(), "the tape is torn") {
				t.Errorf("%v", err)
			}
		})
	}
	group.Wait()
	if l.Forks(i.dir) != 0 {
		t.Errorf("%d forks", l.Forks(i.dir))
	}
	l.nothingLeft()
	i.setFaults(t, faults{})
	check(t, l.fork(i, "0"), i.all(1, 1))

	for name, command := range map[string][]string{"no program": {"/nonexistent"}, "one that ends": {"true"}, "one that talks": {"echo", "hello"}} {
		l := newLab(t, func(c *Config) { c.Command = command })
		if _, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a"}); err == nil || !strings.Contains(err.Error(), "starting a pager") {
			t.Errorf("%s: %v", name, err)
		}
		l.nothingLeft()
	}
}

func TestCloseAll(t *testing.T) {
	l, i, j := newLab(t), newImage(t, mib, block.WriterOptions{}), newImage(t, 2*mib, block.WriterOptions{})
	a, b := l.fork(i, "a"), l.fork(j, "b")
	l.acquire(j, "c")
	if err := l.CloseAll(); err != nil {
		t.Error(err)
	}
	l.dies(a)
	l.dies(b)
	l.nothingLeft()
	if _, err := l.Acquire(t.Context(), i.dir, Fork{ID: "d"}); err == nil {
		t.Error("a fork after the end")
	}
}

func TestCloseAllReturnsTheFirstError(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "a")
	l.mu.Lock()
	p := l.pagers[i.dir]
	l.mu.Unlock()
	if err := unix.PidfdSendSignal(p.child.fd, unix.SIGTERM, nil, 0); err != nil { // ends in good order, but not on our word
		t.Fatal(err)
	}
	l.fails("a", "has ended")
	if err := l.CloseAll(); err != nil {
		t.Errorf("a pager that was buried: %v", err)
	}
	l = newLab(t)
	l.acquire(i, "a")
	l.mu.Lock()
	p = l.pagers[i.dir]
	l.mu.Unlock()
	// A note that can't be removed.
	path := p.notePath()
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := l.CloseAll(); err == nil || !strings.Contains(err.Error(), "removing the note") {
		t.Error(err)
	}
	os.RemoveAll(path)
}

// Forks come and go from many sides. None is refused, none outlives its release, and
// in the end nothing is left.
func TestComingAndGoing(t *testing.T) {
	l, i, j := newLab(t), newImage(t, mib, block.WriterOptions{}), newImage(t, 2*mib, block.WriterOptions{})
	var group sync.WaitGroup
	for n := range 6 {
		group.Go(func() {
			for round := range 10 {
				image := []*testImage{i, j}[(n+round)%2]
				id := fmt.Sprint(n)
				path, err := l.Acquire(t.Context(), image.dir, Fork{ID: id, UID: os.Geteuid()})
				if err != nil {
					t.Errorf("fork %s: %v", id, err)
					return
				}
				conn, err := net.Dial("unix", path)
				if err != nil {
					t.Errorf("fork %s: %v", id, err)
				} else {
					conn.Close()
				}
				if err := l.Release(id); err != nil {
					t.Errorf("fork %s: %v", id, err)
				}
			}
		})
	}
	group.Wait()
	if l.Forks(i.dir)+l.Forks(j.dir) != 0 {
		t.Errorf("%d and %d forks", l.Forks(i.dir), l.Forks(j.dir))
	}
	l.nothingLeft()
}
