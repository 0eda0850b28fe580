package pager

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/pager/uffd"
)

// lab runs a Tracker and clients.
type lab struct {
	*testing.T
	*Tracker
	temp   string
	failed chan failure
}

type failure struct {
	fork string
	err  error
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	needUffd(t)
	l := &lab{T: t, temp: shortDir(t), failed: make(chan failure, 100)}
	c := Config{
		Command: []string{"/usr/bin/env", roleEnv + "=pager", exe(t)}, StateDir: filepath.Join(t.TempDir(), "state"), TempDir: l.temp,
		Failed: func(fork string, err error) { l.failed <- failure{fork, err} },
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	if l.Tracker, err = NewTracker(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.CloseAll(); err != nil {
			t.Error(err)
		}
		l.nothingLeft()
	})
	return l
}

// nothingLeft fails unless pagers have gone and their directories and notes too.
func (l *lab) nothingLeft() {
	l.Helper()
	for _, dir := range []string{l.temp, l.c.StateDir} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			l.Errorf("%s holds %v (%v)", dir, left, err)
		}
	}
}

// shortDir is a temporary directory with a short name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func needUffd(t *testing.T) {
	t.Helper()
	fd, _, err := uffd.Open(uffd.EventRemove)
	if err != nil {
		t.Skipf("this machine gives no userfaultfd: %v", err)
	}
	fd.Close()
}

func (l *lab) acquire(i *testImage, fork string) string {
	l.Helper()
	path, err := l.Acquire(l.Context(), i.dir, Fork{ID: fork, UID: os.Geteuid()})
	if err != nil {
		l.Fatal(err)
	}
	return path
}

func (l *lab) release(fork string) {
	l.Helper()
	if err := l.Release(fork); err != nil {
		l.Error(err)
	}
}

// client starts a client that has mapped all of an image.
func (l *lab) client(i *testImage) *pagertest.Client {
	l.Helper()
	return l.clientOf(l.command(), pagertest.Region{Size: i.header.Size, PageSize: 4 << 10})
}

func (l *lab) command() *exec.Cmd {
	cmd := exec.Command(exe(l.T))
	cmd.Env = append(os.Environ(), roleEnv+"=client")
	return cmd
}

func (l *lab) clientOf(cmd *exec.Cmd, regions ...pagertest.Region) *pagertest.Client {
	l.Helper()
	c, err := pagertest.Start(cmd)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(c.Close)
	if err := c.Map(regions...); err != nil {
		l.Fatal(err)
	}
	return c
}

// fork starts a client and connects it.
func (l *lab) fork(i *testImage, id string) *pagertest.Client {
	l.Helper()
	path := l.acquire(i, id)
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		l.Fatal(err)
	}
	return c
}

// check has a client touch pages and fails if one is wrong.
func check(t *testing.T, c *pagertest.Client, touch pagertest.Touch) {
	t.Helper()
	got, err := c.Touch(touch)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Wrong) > 0 {
		t.Fatalf("pages with wrong bytes: %v", got.Wrong)
	}
}

func (i *testImage) all(seed int64, threads int) pagertest.Touch {
	return pagertest.Touch{To: i.header.Size, Step: 4 << 10, Seed: seed, Threads: threads, Expect: i.expect()}
}

// dies waits until a client was killed.
func (l *lab) dies(c *pagertest.Client) {
	l.Helper()
	select {
	case <-c.Ended():
		if !c.Killed() {
			l.Error("the client has ended, but was not killed")
		}
	case <-time.After(time.Minute):
		l.Fatal("the client lives on")
	}
}

// fails waits until the Tracker has told that a fork has failed, and returns the error.
func (l *lab) fails(fork, why string) error {
	l.Helper()
	select {
	case f := <-l.failed:
		if f.fork != fork || !strings.Contains(f.err.Error(), why) {
			l.Errorf("fork %s has failed: %v; want %s: …%s…", f.fork, f.err, fork, why)
		}
		return f.err
	case <-time.After(time.Minute):
		l.Fatalf("fork %s has not failed", fork)
	}
	return nil
}

// until waits for something that another process does.
func (l *lab) until(what string, f func() bool) {
	l.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatalf("not after a minute: %s", what)
		}
	}
}

func (l *lab) stats(i *testImage) Stats {
	l.Helper()
	s, err := l.Stats(l.Context(), i.dir)
	if err != nil {
		l.Fatal(err)
	}
	return s
}
