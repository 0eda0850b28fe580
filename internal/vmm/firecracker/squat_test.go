package firecracker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// TestSquattedSockets has a VMM put links in the place of its sockets, as one may that its guest has taken over: nobody speaks to what they lead to.
func TestSquattedSockets(t *testing.T) {
	m := start(t, testEngine(t, "1.16.1"), config(t))
	victim := filepath.Join(t.TempDir(), "victim")
	listener, err := net.Listen("unix", victim)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	heard := make(chan string, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				close(heard)
				return
			}
			said := make([]byte, 100)
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			n, _ := conn.Read(said)
			heard <- string(said[:n])
			conn.Close()
		}
	}()
	m.api.close() // the connection that there is
	for _, name := range []string{apiSocket, vsockSocket} {
		path := filepath.Join(m.home.remove, name)
		if err := errors.Join(os.Remove(path), os.Symlink(victim, path)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.dialOnce(t.Context(), agentPort); err == nil || !strings.Contains(err.Error(), "is not the VMM's") {
		t.Errorf("dialing the guest: %v", err)
	}
	if err := m.Stop(t.Context()); err == nil {
		t.Error("somebody else was asked to stop the machine")
	}
	listener.Close()
	for said := range heard {
		if said != "" {
			t.Errorf("somebody else was told %q", said)
		}
	}
}

// TestDialTheRightOne connects to a socket of the process that it is to be of, and to no other's.
func TestDialTheRightOne(t *testing.T) {
	h, err := newHome(filepath.Join(t.TempDir(), "home"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	listener, err := net.Listen("unix", filepath.Join(h.remove, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	for pid, right := range map[int]bool{os.Getpid(): true, other.Process.Pid: false} {
		conn, err := h.dial(t.Context(), "socket", pid)
		if (err == nil) != right {
			t.Errorf("a socket of process %d, taken for one of %d: %v", os.Getpid(), pid, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// TestHostileAnswers hears a VMM that answers with headers without end, and one that sends us elsewhere.
func TestHostileAnswers(t *testing.T) {
	big := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Much", strings.Repeat("x", 4*maxHeader))
	})
	if err := big.put(t.Context(), "/entropy", entropy{}); !errors.Is(err, vmm.ErrDead) {
		t.Errorf("headers of %d bytes: %v", 4*maxHeader, err)
	}
	asked := 0
	away := answering(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, "http://elsewhere/actions", http.StatusTemporaryRedirect)
	})
	var refusal *APIError
	if err := away.call(context.Background(), quick, "PUT", "/vm", vmState{statePaused}, nil); !errors.As(err, &refusal) || refusal.Status != http.StatusTemporaryRedirect || asked != 1 {
		t.Errorf("asked %d times, and then: %v", asked, err)
	}
}
