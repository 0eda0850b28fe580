package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
)

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
