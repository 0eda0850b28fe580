package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

// TestWakeIsTheSameBothWays sends wakes ahead of HTTP/2 and as its requests.
func TestWakeIsTheSameBothWays(t *testing.T) {
	var got []api.Identity
	h := newHost(t, agent.Options{Wake: func(_ context.Context, id api.Identity) (api.WakeReport, error) {
		got = append(got, id)
		switch id.Generation {
		case "nonsense":
			return api.WakeReport{}, fmt.Errorf("%w: nonsense", agent.ErrInvalid)
		case "broken":
			return api.WakeReport{}, errors.New("the clock is stuck")
		}
		return api.WakeReport{Generation: id.Generation, Epoch: id.Epoch, AgentVersion: "v1", ClockStep: -5, Thawed: true}, nil
	}})
	id := api.Identity{
		Generation: "g", Epoch: 4, Time: 1, Entropy: []byte{0, 1, 255}, Hostname: "h", MachineID: "m", Hold: true,
		Net: &api.Net{Address: "10.0.0.2/24", DNS: []string{"10.0.0.3"}}, Context: &api.Context{User: "u", Env: map[string]string{"A": "1"}},
	}
	c := h.session()
	for _, way := range []string{"frames", "requests"} {
		got = nil
		if way == "requests" {
			if err := c.Health(t.Context()); err != nil { // begins HTTP/2
				t.Fatal(err)
			}
		}
		// An error does not end the session.
		var e *Error
		for bad, status := range map[string]int{"nonsense": http.StatusBadRequest, "broken": http.StatusInternalServerError} {
			if _, err := c.wake(t.Context(), api.Identity{Generation: bad}); !errors.As(err, &e) || e.Status != status || e.Message == "" {
				t.Errorf("%s: %s: %v", way, bad, err)
			}
		}
		got = nil
		report, err := c.wake(t.Context(), id)
		want := api.WakeReport{Generation: "g", Epoch: 4, AgentVersion: "v1", ClockStep: -5, Thawed: true}
		if err != nil || report != want {
			t.Errorf("%s: %+v, %v", way, report, err)
		}
		if diff := cmp.Diff([]api.Identity{id}, got); diff != "" {
			t.Errorf("%s: the guest got something else:\n%s", way, diff)
		}
		if began := c.h2 != nil; began != (way == "requests") {
			t.Errorf("%s: HTTP/2 has begun: %v", way, began)
		}
	}
	if out, _, _ := run(t, c, Command{Args: sh("echo on")}); out != "on\n" {
		t.Errorf("after the wakes: %q", out)
	}
}

func TestWakeTimesOut(t *testing.T) {
	release := make(chan struct{})
	h := newHost(t, agent.Options{Wake: func(context.Context, api.Identity) (api.WakeReport, error) {
		<-release
		return api.WakeReport{}, nil
	}})
	defer close(release)
	c := h.session()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Wake(ctx, api.Identity{}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	// How far the guest got is not known: the session is over.
	if err := c.Health(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after that: %v", err)
	}
}

func TestCloseEndsAWakeThatWaits(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	c := NewClient(ours)
	done := make(chan error, 1)
	go func() {
		_, err := c.Wake(context.Background(), api.Identity{})
		done <- err
	}()
	theirs.Read(make([]byte, 10))
	c.Close()
	select {
	case err := <-done:
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it waits on")
	}
}

func TestWakeOfAStranger(t *testing.T) {
	settings := string(api.AppendFrame(nil, api.Settings, make([]byte, 6)[:6]))
	settings = settings[:api.FrameHeader] + "\x00\x05\x00\x00\x40\x00"
	for name, says := range map[string]string{
		"another frame": settings + string(api.AppendFrame(nil, 7, []byte("goaway"))),
		"too much":      settings + "\xff\xff\xff\xe5\x00\x00\x00\x00\x00",
		"garbage":       settings + string(api.AppendFrame(nil, api.WakeFrame, []byte("garbage"))),
		"silence":       settings,
	} {
		ours, theirs, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		c := NewClient(ours)
		go func() {
			theirs.Read(make([]byte, 1000))
			io.WriteString(theirs, says)
			theirs.CloseWrite()
		}()
		if _, err := c.Wake(t.Context(), api.Identity{}); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		theirs.Close()
	}
}

func TestAgentDoesNotTakeAnyLength(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	done := make(chan error, 1)
	go func() { done <- agent.ServeConn(t.Context(), theirs, agent.New(agent.Options{})) }()
	io.WriteString(ours, api.Preface+"\xff\xff\xff\xe5\x00\x00\x00\x00\x00")
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for 16 MiB")
	}
}
