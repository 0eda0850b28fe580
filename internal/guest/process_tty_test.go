package guest

import (
	"bytes"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// transcript collects output that is read while it comes.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *transcript) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.buf.String(), text)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func TestTerminal(t *testing.T) {
	c := session(t)
	out, _, st := run(t, c, Command{Args: sh("test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM && tty && exit 5"), TTY: &Size{Cols: 120, Rows: 40}})
	if st.Code != 5 || !strings.HasPrefix(out, "40 120\r\nxterm-256color\r\n/dev/pts/") {
		t.Errorf("%q, %+v", out, st)
	}
}

func TestTerminalIsTheSessionsOwn(t *testing.T) {
	// Only a controlling terminal opens as /dev/tty, and only its owner opens it.
	out, _, st := run(t, session(t), Command{Args: sh("echo mine >/dev/tty"), TTY: &Size{80, 24}, User: "nobody"})
	if out != "mine\r\n" || !st.Success() {
		t.Errorf("%q, %+v", out, st)
	}
}

func TestTerminalResize(t *testing.T) {
	c := session(t)
	var out transcript
	p, err := c.Start(t.Context(), Command{
		Args: sh("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"), TTY: &Size{80, 24}, Stdout: &out, OpenStdin: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the trap", func() bool { return out.has("ready") })
	if err := p.Resize(t.Context(), Size{Cols: 101, Rows: 37}); err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if !out.has("37 101") {
		t.Errorf("%q", out.String())
	}
}

func TestTerminalInput(t *testing.T) {
	c := session(t)
	var out transcript
	p, err := c.Start(t.Context(), Command{Args: sh("stty -echo; echo ready; read x; echo got $x; cat; echo end"), TTY: &Size{80, 24}, Stdout: &out, OpenStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the prompt", func() bool { return out.has("ready") })
	if err := p.CloseStdin(t.Context()); err == nil || !strings.Contains(err.Error(), "Ctrl-D") {
		t.Errorf("closing a terminal: %v", err)
	}
	if err := p.WriteStdin(t.Context(), []byte("word\n")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the answer", func() bool { return out.has("got word") })
	if err := p.WriteStdin(t.Context(), []byte{4}); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || !st.Success() || !out.has("end") {
		t.Errorf("%q, %+v, %v", out.String(), st, err)
	}
}

func TestTerminalInterrupt(t *testing.T) {
	c := session(t)
	var out transcript
	p, err := c.Start(t.Context(), Command{Args: sh("echo ready; exec sleep 100"), TTY: &Size{80, 24}, Stdout: &out, OpenStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the start", func() bool { return out.has("ready") })
	if err := p.WriteStdin(t.Context(), []byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Signal != syscall.SIGINT {
		t.Errorf("%+v, %v", st, err)
	}
}
