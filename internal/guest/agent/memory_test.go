package agent

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeGroup makes a control group's memory files as a kernel would.
func fakeGroup(t *testing.T, root, name string, limit int64) *memoryGroup {
	t.Helper()
	m, err := newMemoryGroup(filepath.Join(root, name), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(m.fd) })
	return m
}

func (m *memoryGroup) fake(t *testing.T, used, cache int64, pids ...int) {
	t.Helper()
	for file, text := range map[string]string{
		"memory.current": fmt.Sprintln(used),
		"memory.stat":    fmt.Sprintf("anon 1\ninactive_file %d\nactive_file %d\n", cache/2, cache-cache/2),
		"cgroup.procs":   strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", "\n"), "[]"),
	} {
		if err := os.WriteFile(filepath.Join(m.dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A process is born in the spare group only while nothing could run beside the others, and joins them when it can.
func TestSpareGroup(t *testing.T) {
	root := t.TempDir()
	g := &MemoryGuard{root: root, user: fakeGroup(t, root, "user", 64<<20), spare: fakeGroup(t, root, "spare", spareMemory)}
	if text, err := os.ReadFile(filepath.Join(g.user.dir, "memory.max")); err != nil || string(text) != strconv.Itoa(64<<20) {
		t.Errorf("the limit is %q, %v", text, err)
	}
	for _, c := range []struct {
		what        string
		used, cache int64
		group       *memoryGroup
	}{
		{"empty", 1 << 20, 0, g.user},
		{"full of files that are on the disk", 64 << 20, 40 << 20, g.user},
		{"full of data", 63 << 20, 1 << 20, g.spare},
		{"with room again", 50 << 20, 1 << 20, g.user},
	} {
		g.user.fake(t, c.used, c.cache)
		g.spare.fake(t, 0, 0, 4711)
		if got := g.Group(); got != c.group.fd {
			t.Errorf("%s: a process is born in the wrong group", c.what)
		}
	}
	if text, err := os.ReadFile(filepath.Join(g.user.dir, "cgroup.procs")); err != nil || string(text) != "4711" || !g.spared {
		t.Errorf("the process in the spare group has not been moved: %q, %v", text, err)
	}
	g.spare.fake(t, 0, 0)
	if g.Group(); g.spared {
		t.Error("an empty spare group is emptied again")
	}
	// A kernel without the memory controller.
	os.Remove(filepath.Join(g.user.dir, "memory.current"))
	if g.Group() != g.user.fd {
		t.Error("without figures a process is not born among the others")
	}
}

// The largest process below a group is ended, and counted; one above it is not.
func TestRelieve(t *testing.T) {
	root := t.TempDir()
	g := &MemoryGuard{root: root, user: fakeGroup(t, root, "user", 64<<20)}
	inner := fakeGroup(t, root, "user/inner", 0)
	small, large, agent := sleeper(t, "1"), sleeper(t, "16M"), sleeper(t, "32M")
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(agent.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	g.user.fake(t, 0, 0, small.Process.Pid, 1<<22+1) // no pid is so large
	inner.fake(t, 0, 0, large.Process.Pid)
	if err := g.relieve(root); err != nil {
		t.Fatal(err)
	}
	if err := large.Wait(); err == nil || !strings.Contains(err.Error(), "killed") || g.Kills() != 1 {
		t.Errorf("the largest ended with %v, and %d are counted", err, g.Kills())
	}
	inner.fake(t, 0, 0)
	if err := g.relieve(g.user.dir); err != nil {
		t.Fatal(err)
	}
	if err := small.Wait(); err == nil || g.Kills() != 2 {
		t.Errorf("the last ended with %v, and %d are counted", err, g.Kills())
	}
	g.user.fake(t, 0, 0)
	if err := g.relieve(root); err != nil || g.Kills() != 2 {
		t.Errorf("with nobody to end: %v, %d", err, g.Kills())
	}
	if err := unix.Kill(agent.Process.Pid, 0); err != nil {
		t.Errorf("who is above: %v", err)
	}
}

// sleeper starts a process that keeps so much memory until it is killed.
func sleeper(t *testing.T, size string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "x=$(head -c "+size+" /dev/zero | tr '\\0' x); echo ready; read y")
	if _, err := cmd.StdinPipe(); err != nil { // for it to wait on
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestStarved(t *testing.T) {
	root := t.TempDir()
	m := fakeGroup(t, root, "user", 64<<20)
	if err := os.WriteFile(filepath.Join(m.dir, "memory.events"), []byte("oom_kill 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for cache, want := range map[int64]bool{0: true, 3 << 20: true, 5 << 20: false} {
		m.fake(t, 64<<20, cache)
		if got, err := m.starved(); err != nil || got != want {
			t.Errorf("with %d bytes of cache: %v, %v", cache, got, err)
		}
	}
	m.fake(t, 2<<20, 0)
	if got, err := m.starved(); err != nil || got {
		t.Errorf("nearly empty: %v, %v", got, err)
	}
	m.fake(t, 64<<20, 0)
	if err := os.WriteFile(filepath.Join(m.dir, "memory.events"), []byte("oom_kill 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		if got, err := m.starved(); err != nil || got != want {
			t.Errorf("after the kernel ended somebody: %v, %v; want %v", got, err, want)
		}
	}
	for text, want := range map[string]bool{
		"MemTotal: 124452 kB\nMemFree: 100 kB\nMemAvailable:  3000 kB\n": true,
		"MemTotal: 124452 kB\nMemFree: 100 kB\nMemAvailable:  9000 kB\n": false,
	} {
		if got, err := starvedBy([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := starvedBy([]byte("MemTotal: 1 kB\n")); err == nil {
		t.Error("nothing is said of what is available, and believed")
	}
}

func FuzzStarved(f *testing.F) {
	f.Add([]byte("MemTotal:  124452 kB\nMemAvailable:  37016 kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := starvedBy(text); err == nil && !bytes.Contains(text, []byte("MemAvailable:")) {
			t.Error("nothing is said of what is available, and believed")
		}
	})
}
