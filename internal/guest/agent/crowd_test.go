package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A process is born in the spare group while the others are so many that it could start none of its own.
func TestCrowd(t *testing.T) {
	root := t.TempDir()
	g := &MemoryGuard{root: root, user: fakeGroup(t, root, "user", 64<<20), spare: fakeGroup(t, root, "spare", spareMemory)}
	g.user.fake(t, 1<<20, 0)
	g.spare.fake(t, 0, 0)
	there := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(g.user.dir, "pids.current"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	there("1000000\n")
	if g.Group() != g.user.fd {
		t.Error("without a limit a process is not born among the others")
	}
	if err := g.user.bound(200); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(g.user.dir, "pids.max")); err != nil || string(text) != "200" {
		t.Errorf("the limit is %q, %v", text, err)
	}
	for _, c := range []struct {
		text  string
		group *memoryGroup
	}{{"1\n", g.user}, {"174\n", g.user}, {"175\n", g.spare}, {"200\n", g.spare}, {"300\n", g.spare}, {"20\n", g.user}, {"garbage", g.user}} {
		there(c.text)
		if g.Group() != c.group.fd {
			t.Errorf("of %q processes: the next one is born in the wrong group", c.text)
		}
	}
	// Where one was refused a short while ago, only a few are no crowd.
	now := time.Now()
	if err := os.WriteFile(filepath.Join(g.user.dir, "pids.events"), []byte("max 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text    string
		after   time.Duration
		crowded bool
	}{{"17\n", 0, true}, {"16\n", time.Second, false}, {"17\n", crowdMemory - 1, true}, {"17\n", crowdMemory, false}, {"174\n", crowdMemory, false}, {"175\n", crowdMemory, true}} {
		there(c.text)
		if got := g.user.crowded(now.Add(c.after)); got != c.crowded {
			t.Errorf("%q processes %v after one was refused: crowded is %t", c.text, c.after, got)
		}
	}
	// A kernel without the controller.
	if err := os.Remove(filepath.Join(g.user.dir, "pids.current")); err != nil {
		t.Fatal(err)
	}
	if g.Group() != g.user.fd {
		t.Error("without figures a process is not born among the others")
	}
	if err := g.user.bound(0); err != nil || g.user.most != 200 {
		t.Errorf("no limit: %v, %d", err, g.user.most)
	}
}

func TestMaxUserProcesses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "threads-max")
	for text, want := range map[string]int64{"820\n": 205, "3\n": 0, "": 0, "many": 0} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := maxUserProcesses(file); got != want {
			t.Errorf("of %q: %d, want %d", text, got, want)
		}
	}
	if got := maxUserProcesses(file + "x"); got != 0 {
		t.Errorf("of a kernel that does not say: %d", got)
	}
	if got := maxUserProcesses(threadsMax); got < 1 {
		t.Errorf("of this kernel: %d", got)
	}
	if err := (&memoryGroup{dir: "/proc/self/fdinfo"}).bound(1); err != nil { // as a control group without the controller: no file can be made there
		t.Error(fmt.Errorf("without the controller: %w", err))
	}
}
