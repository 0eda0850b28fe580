package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest/agent"
)

func TestWhatIsLeftBehindGoesOn(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	// It holds the output open and writes to it when it is told to, after the
	// command's end: that must neither delay the end nor kill what was left behind.
	script := "cd " + dir + "; (for i in $(seq 600); do test -e go && break; sleep 0.1; done; echo late; echo later; touch mark) & echo early"
	out, _, st := run(t, c, Command{Args: sh(script)})
	if !st.Success() || out != "early\n" {
		t.Errorf("%q, %+v", out, st)
	}
	if _, err := os.Stat(filepath.Join(dir, "mark")); err == nil {
		t.Error("the command's end waited for what it left behind")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "what was left behind", func() bool { _, err := os.Stat(filepath.Join(dir, "mark")); return err == nil })
}

func TestFloodLeftBehindDoesNotHideTheEnd(t *testing.T) { testLeftBehind(t, "yes") }

// A trickle never falls silent for as long as the agent waits for silence.
func TestTrickleLeftBehindDoesNotHideTheEnd(t *testing.T) {
	testLeftBehind(t, "while :; do echo on and on; sleep 0.01; done")
}

func testLeftBehind(t *testing.T, writes string) {
	c := session(t)
	dir := t.TempDir()
	p, err := c.Start(t.Context(), Command{Args: sh("{ " + writes + "; } & echo $! >" + dir + "/pid")})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Error("the end was never reported")
	}
	var pid int
	data, _ := os.ReadFile(dir + "/pid")
	fmt.Sscan(string(data), &pid)
	if pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestDeadlineKills(t *testing.T) {
	c := session(t)
	for limit := 300 * time.Millisecond; ; limit *= 4 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		p, err := c.Start(ctx, Command{Args: []string{"sleep", "600"}})
		if errors.Is(err, context.DeadlineExceeded) && limit < patience {
			continue // a machine so busy that nothing has started by then
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Wait()
		waitFor(t, "the process to be killed", func() bool { return syscall.Kill(p.PID(), 0) == syscall.ESRCH })
		return
	}
}

func TestCancelKillsUnlessDetached(t *testing.T) {
	c := session(t)
	for _, detach := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		p, err := c.Start(ctx, Command{Args: []string{"sleep", "60"}, Detach: detach})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if detach {
			p.Detach()
			time.Sleep(100 * time.Millisecond)
			if err := syscall.Kill(p.PID(), 0); err != nil {
				t.Errorf("a detached process is gone: %v", err)
			}
			if err := p.Signal(t.Context(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		waitFor(t, "the process to be gone", func() bool { return syscall.Kill(p.PID(), 0) == syscall.ESRCH })
	}
}

func TestProcessOutlivesItsSession(t *testing.T) {
	h := newHost(t, agent.Options{})
	first := h.session()
	p, err := first.Start(t.Context(), Command{Args: sh("read line; echo got $line; read line; exit 9"), OpenStdin: true, Tag: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := p.Wait(); !errors.Is(err, ErrClosed) {
		t.Errorf("following a process over a dead session: %v", err)
	}

	second := h.session()
	list, err := second.Processes(t.Context())
	if err != nil || len(list) != 1 || list[0].PID != p.PID() || list[0].Tag != "mine" || list[0].Args[0] != "sh" {
		t.Fatalf("%+v, %v", list, err)
	}
	var out bytes.Buffer
	again, err := second.AttachTag(t.Context(), "mine", &out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.PID() != p.PID() {
		t.Errorf("attached to %d, not %d", again.PID(), p.PID())
	}
	if err := again.WriteStdin(t.Context(), []byte("hello\nbye\n")); err != nil {
		t.Fatal(err)
	}
	if st, err := again.Wait(); err != nil || st.Code != 9 || out.String() != "got hello\n" {
		t.Errorf("%q, %+v, %v", out.String(), st, err)
	}
	// One that came too late still learns how it ended.
	late, err := second.Attach(t.Context(), p.PID(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := late.Wait(); err != nil || st.Code != 9 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := second.Attach(t.Context(), 1<<30, nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attaching to nobody: %v", err)
	}
}

func TestTwoFollowers(t *testing.T) {
	c := session(t)
	var one, two bytes.Buffer
	p, err := c.Start(t.Context(), Command{Args: sh("read x; head -c 500000 /dev/zero"), OpenStdin: true, Stdout: &one})
	if err != nil {
		t.Fatal(err)
	}
	q, err := c.Attach(t.Context(), p.PID(), &two, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WriteStdin(t.Context(), []byte("go\n")); err != nil {
		t.Fatal(err)
	}
	p.Wait()
	q.Wait()
	if one.Len() != 500000 || two.Len() != 500000 {
		t.Errorf("%d and %d bytes", one.Len(), two.Len())
	}
}
