package firecracker

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestTracked freezes and thaws machines whose page map can't be read: what they wrote is known from Firecracker's own snapshots.
func TestTracked(t *testing.T) {
	both(t, func(t *testing.T, e *Engine) {
		e.readable = func(int) error { return errors.New("not for you") }
		c := config(t)
		m, memory := start(t, e, c), c.Memory
		var last uint32
		for generation := range 3 {
			waitDots(t, m, 3)
			if _, err := m.Dirty(t.Context()); !errors.Is(err, errNotSaved) {
				t.Errorf("generation %d: Dirty of a running machine: %v", generation, err)
			}
			// Twice, so that what the first snapshot took from Firecracker's log is still known after the second.
			vmmtest.Freeze(t, m, memory)
			if err := m.Continue(t.Context()); err != nil {
				t.Fatal(err)
			}
			state, next, dirty := vmmtest.Freeze(t, m, memory)
			if !dirty.Contains(4 << 20 / 4096) {
				t.Fatalf("generation %d: the counter's page is not dirty", generation)
			}
			if generation > 0 && dirty.Len() > 512 {
				t.Errorf("generation %d: %d pages are dirty, for a guest that writes to a handful", generation, dirty.Len())
			}
			now := vmmtest.Count(t, m)
			if now <= last {
				t.Fatalf("generation %d: the counter went from %d to %d", generation, last, now)
			}
			last, memory = now, next
			m.Close()
			m = start(t, e, thawed(t, state, next))
		}
	})
}

// TestGivenBack checks that memory which the guest has given back to the host reads as zeros afterwards, and counts as written.
func TestGivenBack(t *testing.T) {
	e := testEngine(t, "1.16.1")
	state, memory, _ := frozen(t, e)
	const at, size = 16 << 20, 2 << 20
	if _, err := memory.WriteAt([]byte("what the guest had there"), at); err != nil {
		t.Fatal(err)
	}
	m := start(t, e, thawed(t, state, memory))
	if err := m.api.patch(t.Context(), "/balloon", balloonUpdate{size >> 20}); err != nil {
		t.Fatal(err)
	}
	_, after, dirty := vmmtest.Freeze(t, m, memory)
	p := make([]byte, 24)
	if _, err := after.ReadAt(p, at); err != nil || string(p) != string(make([]byte, 24)) {
		t.Errorf("memory that was given back reads as %q (%v)", p, err)
	}
	if !dirty.Contains(at/4096) || !dirty.Contains((at+size)/4096-1) || dirty.Contains((at+size)/4096) {
		t.Error("not just the pages that were given back are dirty")
	}
}

// TestDial reaches the guest through the socket that Firecracker makes.
func TestDial(t *testing.T) {
	e := testEngine(t, "1.15.1") // which has no vsock_override: the state's own path must do
	state, memory, _ := frozen(t, e)
	for range 2 {
		m := start(t, e, thawed(t, state, memory))
		conn, err := m.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("echo\n")); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		for _, want := range []string{"hello\n", "echo\n"} {
			if got, err := in.ReadString('\n'); err != nil || got != want {
				t.Errorf("the guest says %q (%v), want %q", got, err, want)
			}
		}
		gone := errors.New("no patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := m.DialPort(ctx, 99); !errors.Is(err, gone) {
			t.Errorf("dialing a port where nobody listens: %v", err)
		}
	}
}

// TestDialTheDead checks that nobody waits for a guest that is gone.
func TestDialTheDead(t *testing.T) {
	m := start(t, testEngine(t, "1.16.1"), config(t))
	failed := make(chan error)
	go func() {
		_, err := m.DialPort(t.Context(), 99)
		failed <- err
	}()
	m.End()
	if err := <-failed; !errors.Is(err, vmm.ErrDead) {
		t.Errorf("DialPort: %v", err)
	}
}

// TestLog reads what Firecracker complains of.
func TestLog(t *testing.T) {
	both(t, func(t *testing.T, e *Engine) {
		m := start(t, e, config(t))
		if err := m.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.SaveState(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "warning in the log", func() bool { return strings.Contains(m.Log(), "preview") })
	})
}

// TestDeepFolder runs a machine whose folder is deeper than a socket's address can be long.
func TestDeepFolder(t *testing.T) {
	both(t, func(t *testing.T, e *Engine) {
		c := config(t)
		c.Dir = filepath.Join(t.TempDir(), strings.Repeat("deep/", 60))
		if err := os.MkdirAll(c.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m := start(t, e, c)
		vmmtest.WaitCount(t, m, 0)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(c.Dir); err != nil || len(left) > 0 {
			t.Errorf("left in the machine's folder: %v (%v)", left, err)
		}
	})
}

// TestDisk gives a machine a disk as a file.
func TestDisk(t *testing.T) {
	both(t, func(t *testing.T, e *Engine) {
		disk := func() *os.File {
			f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE, 0o666)
			if err == nil {
				err = errors.Join(f.Truncate(1<<20), f.Chmod(0o666))
			}
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		c := config(t)
		c.Disk = disk()
		m := start(t, e, c)
		vmmtest.WaitCount(t, m, 0)
		state, memory, _ := vmmtest.Freeze(t, m, c.Memory)
		m.Close()
		without := thawed(t, state, memory)
		if m, err := e.Start(t.Context(), without); err == nil {
			m.Close()
			t.Error("a machine that was frozen with a disk thaws without")
		}
		with := thawed(t, state, memory)
		with.Disk = disk()
		vmmtest.WaitCount(t, start(t, e, with), 0)
	})
}
