package pager

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
)

// Whoever says something wrong would wait for its memory forever.
func TestMalformedMessages(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "keeps the pager")
	zero, two, many := 0, 2, 200
	whole := "[" + regionText(4096, 4096, 0, 4096) + "]"
	hellos := map[string]struct {
		pagertest.Hello
		why string
	}{
		"no descriptor":    {pagertest.Hello{Descriptors: &zero}, "0 descriptors"},
		"two descriptors":  {pagertest.Hello{Descriptors: &two}, "2 descriptors"},
		"many descriptors": {pagertest.Hello{Descriptors: &many}, "too many"},
		"another file":     {pagertest.Hello{NoUffd: true}, `not a userfaultfd`},
		"two in a bad one": {pagertest.Hello{Descriptors: &two, Raw: new(string)}, ""},
	}
	object := whole[1 : len(whole)-1]
	hellos["two in a bad one"] = struct {
		pagertest.Hello
		why string
	}{pagertest.Hello{Descriptors: &two, Raw: &object}, "not a JSON array"}
	for _, name := range []string{"object", "short", "one byte", "huge", "overlapping memory", "unaligned base", "beyond the image"} {
		text := badHandshakes[name][0]
		hellos[name] = struct {
			pagertest.Hello
			why string
		}{pagertest.Hello{Raw: &text}, badHandshakes[name][1]}
	}
	for name, h := range hellos {
		t.Run(name, func(t *testing.T) {
			h.Path = l.acquire(i, name)
			c := l.client(i)
			_ = c.Hello(h.Hello) // it may be killed before it can answer
			l.dies(c)
			l.fails(name, h.why)
			l.release(name)
		})
	}
	check(t, l.fork(i, "a"), i.all(1, 2))
}

// asNobody has a command run as another user, from a copy that this can read.
func asNobody(t *testing.T, l *lab) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start processes as another user")
	}
	data, err := os.ReadFile(exe(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	path := filepath.Join(dir, "client")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := l.command()
	cmd.Path, cmd.Dir = path, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestWrongUser(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	whole := pagertest.Region{Size: mib, PageSize: 4 << 10}
	path := l.acquire(i, "a")
	wrong := l.clientOf(asNobody(t, l), whole)
	if err := wrong.Hello(pagertest.Hello{Path: path}); err == nil {
		t.Error("the socket lets others connect")
	}
	// If that were not so, it would be asked who it is.
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := wrong.Hello(pagertest.Hello{Path: path}); err != nil && !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	check(t, c, i.all(1, 2))
	select {
	case <-wrong.Ended():
		t.Error("another user's process was killed")
	case f := <-l.failed:
		t.Errorf("fork %s has failed: %v", f.fork, f.err)
	default:
	}
}

// A VMM that runs as a user of its own, as a jailer has it.
func TestUserOfItsOwn(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	cmd := asNobody(t, l)
	path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: 65534})
	if err != nil {
		t.Fatal(err)
	}
	c := l.clientOf(cmd, pagertest.Region{Size: mib, PageSize: 4 << 10})
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	all := i.all(1, 2)
	all.Expect = "" // it can't read the file
	check(t, c, all)
	l.release("a")
	l.dies(c)
}

// Others of the same user that connect and say nothing.
func TestSquatters(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	path, nothing := l.acquire(i, "a"), ""
	squatter := l.client(i)
	for range handshakes - 1 {
		if err := squatter.Hello(pagertest.Hello{Path: path, Raw: &nothing}); err != nil {
			t.Fatal(err)
		}
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	check(t, c, i.all(1, 2))
	// The socket is gone: one fork, one machine.
	if err := l.client(i).Hello(pagertest.Hello{Path: path}); err == nil {
		t.Error("a second machine could connect")
	}
	select {
	case <-squatter.Ended():
		t.Error("the silent one was killed")
	default:
	}
}

// One that connects in time but says so too late, or says something wrong then, is no
// harm to the machine that is there.
func TestSecondMachine(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	path, nothing, wrong := l.acquire(i, "a"), "", "wrong"
	second, third, c := l.client(i), l.client(i), l.client(i)
	for _, silent := range []*pagertest.Client{second, third} {
		if err := silent.Hello(pagertest.Hello{Path: path, Raw: &nothing}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	check(t, c, pagertest.Touch{To: mib / 2, Step: 4 << 10, Expect: i.expect()})
	_ = second.Hello(pagertest.Hello{Late: true}) // it may be killed before it can answer
	_ = third.Hello(pagertest.Hello{Late: true, Raw: &wrong})
	l.dies(second)
	l.dies(third)
	check(t, c, i.all(1, 2))
	l.until("the fork has its machine", func() bool { return l.stats(i).Connected == 1 })
	l.release("a")
	l.dies(c)
	select {
	case f := <-l.failed:
		t.Errorf("fork %s has failed: %v", f.fork, f.err)
	default:
	}
}

// Memory that was registered and not told of belongs to no place of the image.
func TestUntoldRegion(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	c := l.clientOf(l.command(), pagertest.Region{Size: mib / 2, PageSize: 4 << 10}, pagertest.Region{Size: mib / 4, Offset: mib / 2, PageSize: 4 << 10})
	if err := c.Hello(pagertest.Hello{Path: l.acquire(i, "a"), Only: 1}); err != nil {
		t.Fatal(err)
	}
	check(t, c, pagertest.Touch{To: mib / 2, Step: 4 << 10, Expect: i.expect()})
	l.touchUntilDead(c, pagertest.Touch{Pages: []int64{mib / 2}})
	l.fails("a", "which is in none of its regions")
}

// A fork is released while its machine is at any step of connecting: what it has
// handed over by then is not forgotten.
func TestReleaseWhileConnecting(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "keeps the pager")
	for range 20 {
		path := l.acquire(i, "a")
		c := l.client(i)
		if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
			t.Fatal(err)
		}
		l.release("a")
		l.dies(c)
	}
}
