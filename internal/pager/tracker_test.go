package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
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

// startDaemon starts a process with a Tracker of its own, and returns the sockets of forks.
func (l *lab) startDaemon(i *testImage, forks ...string) (*exec.Cmd, []string) {
	l.Helper()
	cmd := exec.Command(exe(l.T))
	cmd.Env = append(os.Environ(), roleEnv+"=daemon")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = json.NewEncoder(in).Encode(daemonOrder{StateDir: l.c.StateDir, TempDir: l.temp, Template: i.dir, Forks: forks})
	}
	var paths []string
	if err == nil {
		err = json.NewDecoder(out).Decode(&paths)
	}
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, paths
}

func (l *lab) kill(cmd *exec.Cmd) {
	l.Helper()
	if err := cmd.Process.Kill(); err != nil {
		l.Fatal(err)
	}
	_ = cmd.Wait()
}

func (l *lab) connect(i *testImage, path string) *pagertest.Client {
	l.Helper()
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		l.Fatal(err)
	}
	return c
}

func (l *lab) adopt(keep ...string) Adoption {
	l.Helper()
	a, err := l.Adopt(l.Context(), func(_, fork string) bool { return slices.Contains(keep, fork) })
	if err != nil {
		l.Fatal(err)
	}
	slices.Sort(a.Adopted)
	slices.Sort(a.Ended)
	return a
}

func TestAdopt(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	old, paths := l.startDaemon(i, "keep", "keep too", "end", "late")
	keep, too, end := l.connect(i, paths[0]), l.connect(i, paths[1]), l.connect(i, paths[2])
	check(t, keep, pagertest.Touch{To: 1 << 20, Step: 4 << 10, Expect: i.expect()})
	if _, err := l.Adopt(t.Context(), func(string, string) bool { return true }); !errors.Is(err, errTaken) {
		t.Errorf("a pager was adopted that has an owner: %v", err)
	}
	l.kill(old)
	check(t, keep, pagertest.Touch{To: 4 << 20, Step: 4 << 10, Expect: i.expect()}) // nobody's, but served
	want := Adoption{Adopted: []string{"keep", "keep too", "late"}, Ended: []string{"end"}}
	if diff := cmp.Diff(want, l.adopt("keep", "keep too", "late")); diff != "" {
		t.Fatalf("adopted (-want +got):\n%s", diff)
	}
	l.dies(end)
	check(t, keep, i.all(1, 2))
	check(t, too, i.all(1, 2))
	check(t, l.connect(i, paths[3]), i.all(2, 2))
	check(t, l.fork(i, "new"), i.all(3, 2))
	if s := l.stats(i); s.Forks != 4 || l.Forks(i.dir) != 4 || s.Connected != 4 {
		t.Errorf("%d forks, %+v", l.Forks(i.dir), s)
	}
	// It is supervised as before.
	l.mu.Lock()
	p := l.pagers[i.dir]
	l.mu.Unlock()
	if err := p.child.kill(); err != nil {
		t.Fatal(err)
	}
	l.dies(keep)
	l.dies(too)
}

func TestAdoptEndsAll(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	old, paths := l.startDaemon(i, "a", "b")
	a := l.connect(i, paths[0])
	check(t, a, i.all(1, 2))
	l.kill(old)
	if diff := cmp.Diff(Adoption{Ended: []string{"a", "b"}}, l.adopt()); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
	l.dies(a)
	l.nothingLeft()
}

// A pager that nobody takes over stays as long as its machines, and not for ever.
func TestOrphans(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	old, paths := l.startDaemon(i, "a", "b")
	a := l.connect(i, paths[0])
	check(t, a, pagertest.Touch{To: mib / 2, Step: 4 << 10, Expect: i.expect()})
	l.kill(old)
	time.Sleep(200 * time.Millisecond) // four times its patience, were it alone
	check(t, a, i.all(1, 2))
	a.Close()
	l.until("the pager has ended", func() bool {
		left, err := os.ReadDir(l.temp)
		return err == nil && len(left) == 0
	})
	if diff := cmp.Diff(Adoption{Ended: []string{"a", "b"}}, l.adopt("a", "b")); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
	l.nothingLeft()
}

// Daemon and pager die, then or meanwhile, or the pager does not answer.
func TestAdoptWithoutPager(t *testing.T) {
	for _, how := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
		t.Run(how.String(), func(t *testing.T) {
			l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
			old, paths := l.startDaemon(i, "a", "b")
			a := l.connect(i, paths[0])
			check(t, a, pagertest.Touch{To: mib / 2, Step: 4 << 10, Expect: i.expect()})
			var n note
			l.until("the daemon has noted the machine", func() bool {
				notes, _ := filepath.Glob(filepath.Join(l.c.StateDir, "*.json"))
				var err error
				if len(notes) == 1 {
					n, err = readNote(notes[0])
				}
				return err == nil && slices.ContainsFunc(n.Forks, func(f noteFork) bool { return f.PID == a.PID() })
			})
			l.kill(old)
			if err := unix.Kill(n.PID, how); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			l.until("the signal has come", func() bool {
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID))
				return err != nil || strings.Contains(string(stat), ") T ") || strings.Contains(string(stat), ") Z ")
			})
			got, err := l.Adopt(ctx, func(string, string) bool { return true })
			slices.Sort(got.Ended)
			if diff := cmp.Diff(Adoption{Ended: []string{"a", "b"}}, got); diff != "" || err != nil {
				t.Errorf("adopted (-want +got):\n%s\n%v", diff, err)
			}
			l.dies(a)
			l.nothingLeft()
		})
	}
}

// A note whose numbers have come to mean other processes.
func TestAdoptSparesOthers(t *testing.T) {
	l := newLab(t)
	bystander := l.command()
	c, err := pagertest.Start(bystander)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	started, err := startTime(c.PID())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(l.temp, dirPrefix+"1")
	data, err := json.Marshal(note{Root: root, Template: "t", PID: c.PID(), Started: started - 1, Forks: []noteFork{{ID: "a", PID: c.PID(), Started: started + 1}, {ID: "b", PID: 1}, {ID: "c"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.c.StateDir, dirPrefix+"1"+noteSuffix), data, 0o600); err != nil {
		t.Fatal(err)
	}
	l.adopt()
	if err := c.Map(pagertest.Region{Size: 4 << 10, PageSize: 4 << 10}); err != nil {
		t.Errorf("a process that was not meant was killed: %v", err)
	}
	// Notes are not trusted with what to remove.
	for name, text := range map[string]string{"x": "{}", "y": `{"root":"/"}`, "z": `{"root":"/etc/z"}`, "w": "torn"} {
		path := filepath.Join(l.c.StateDir, name+noteSuffix)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Adopt(t.Context(), nil); err == nil {
			t.Errorf("no error for the note %s", text)
		}
		os.Remove(path)
	}
}
