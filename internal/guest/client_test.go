package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

// patience is how long a busy machine may take for what takes moments on an idle one. Nothing waits so long but a test that fails.
const patience = 2 * time.Minute

// host is an agent under test, to which any number of sessions can be opened.
type host struct {
	t      *testing.T
	server *agent.Server
}

func newHost(t *testing.T, o agent.Options) *host {
	t.Helper()
	h := &host{t, agent.New(o)}
	t.Cleanup(func() { h.server.Close() })
	return h
}

// session opens a session over a socket pair.
func (h *host) session() *Client {
	h.t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		h.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- agent.ServeConn(context.Background(), theirs, h.server) }()
	c := NewClient(ours)
	h.t.Cleanup(func() {
		c.Close()
		select {
		case <-done:
		case <-time.After(patience):
			h.t.Error("the server did not notice the end of the session")
		}
	})
	return c
}

// session runs an agent with default options and a client of it.
func session(t *testing.T) *Client {
	t.Helper()
	return newHost(t, agent.Options{}).session()
}

func TestHealth(t *testing.T) {
	if err := session(t).Health(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWakeAndQuiesceReachTheirHandlers(t *testing.T) {
	var wakes []api.Identity
	c := newHost(t, agent.Options{
		Wake: func(_ context.Context, id api.Identity) (api.WakeReport, error) {
			wakes = append(wakes, id)
			if !id.Hold {
				return api.WakeReport{Generation: id.Generation, Thawed: len(wakes) == 2, ClockStep: 2}, nil
			}
			return api.WakeReport{Generation: id.Generation, Entropy: len(id.Entropy), ClockStep: 40}, nil
		},
		Quiesce: func(_ context.Context, o api.QuiesceOptions) (api.QuiesceReport, error) {
			if !o.DropCaches {
				return api.QuiesceReport{}, errors.New("frozen solid")
			}
			return api.QuiesceReport{Frozen: 7}, nil
		},
	}).session()
	before := time.Now().UnixNano()
	report, err := c.Wake(t.Context(), api.Identity{Generation: "g1", Entropy: []byte("random"), Epoch: 3, Time: 1})
	if err != nil || len(wakes) < 2 || !report.Thawed || report.Generation != "g1" || report.Entropy != 6 || report.ClockStep != 40+2*int64(len(wakes)-1) {
		t.Fatalf("%+v, %v, after %+v", report, err, wakes)
	}
	got, release := wakes[0], wakes[1]
	if got.Generation != "g1" || string(got.Entropy) != "random" || got.Epoch != 3 || got.Time < before {
		t.Errorf("the handler got %+v", got)
	}
	// A second request, with the time as it is by then, lets processes run. Those of a busy host that follow only set the clock again.
	if release.Generation != "g1" || release.Time < got.Time || len(release.Entropy) != 0 {
		t.Errorf("the handler got then %+v", release)
	}
	for i, again := range wakes[2:] {
		if again.Generation != "g1" || again.Time < wakes[i+1].Time || again.Hold || again.Hostname != "" {
			t.Errorf("the handler got at last %+v", again)
		}
	}
	wakes = nil
	if _, err := c.Wake(t.Context(), api.Identity{Generation: "g2", Entropy: []byte("random")}); err != nil || len(wakes) != 2 || wakes[0].Time != 0 || wakes[1].Time != 0 {
		t.Errorf("a clock to be left alone: %+v, %v", wakes, err)
	}
	if r, err := c.Quiesce(t.Context(), api.QuiesceOptions{DropCaches: true}); err != nil || r.Frozen != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.Quiesce(t.Context(), api.QuiesceOptions{}); err == nil || !strings.Contains(err.Error(), "frozen solid") {
		t.Errorf("the guest's error came out as %v", err)
	}
}

// TestClockIsSetAgain has a guest take its time: a clock that was set by a request that was long under way is set anew, but not for ever.
func TestClockIsSetAgain(t *testing.T) {
	for slow, want := range map[int]int{1: 1, 3: 3, 100: clockTries + 1} { // requests after the first
		var wakes []api.Identity
		c := newHost(t, agent.Options{Wake: func(_ context.Context, id api.Identity) (api.WakeReport, error) {
			wakes = append(wakes, id)
			if n := len(wakes) - 1; n > 0 && n < slow {
				time.Sleep(2 * clockSlack)
			}
			return api.WakeReport{Generation: id.Generation, Time: int64(len(wakes)), Thawed: len(wakes) == 2}, nil
		}}).session()
		report, err := c.Wake(t.Context(), api.Identity{Generation: "g", Entropy: []byte("random"), Hostname: "h", Time: 1})
		// A busy machine may add to the waiting.
		if n := len(wakes) - 1; err != nil || n < want || n > clockTries+1 || !report.Thawed || report.Time != int64(len(wakes)) {
			t.Fatalf("slow until %d: %d requests, want %d; %+v, %v", slow, n, want, report, err)
		}
		if slack := c.ClockSlack(); slack <= 0 || slow == 100 && slack < 2*clockSlack || len(wakes)-1 < clockTries+1 && slack > clockSlack {
			t.Errorf("slow until %d: after %d requests the clock may be off by %v", slow, len(wakes)-1, slack)
		}
		for i, id := range wakes[1:] {
			if id.Hold || id.Hostname != "" || id.Time <= wakes[i].Time || (len(id.Entropy) > 0) != (i > 0) {
				t.Errorf("slow until %d: request %d is %+v", slow, i+1, id)
			}
		}
	}
}

func TestRoutesThatAreNotServed(t *testing.T) {
	c := session(t)
	var e *Error
	if _, err := c.Wake(t.Context(), api.Identity{}); !errors.As(err, &e) || e.Status != http.StatusNotImplemented {
		t.Errorf("wake without a handler: %v", err)
	}
	res, err := c.HTTP().Get("http://anywhere/nothing/here")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown route gave %s", res.Status)
	}
}

func TestStats(t *testing.T) {
	c := newHost(t, agent.Options{Version: "v9"}).session()
	s, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.AgentVersion != "v9" || s.Kernel == "" || s.CPUs < 1 || s.MemTotal < 1<<20 || s.MemFree <= 0 || s.MemFree > s.MemTotal ||
		s.DiskTotal <= 0 || s.AgentRSS <= 0 || s.Uptime <= 0 || s.CPUTotal <= 0 || s.CPUBusy > s.CPUTotal {
		t.Errorf("implausible: %+v", s)
	}
	if d := time.Since(time.Unix(0, s.Time)); d < 0 || d > time.Minute {
		t.Errorf("the guest's clock is off by %s", d)
	}
}

func TestMetricsAndEnvs(t *testing.T) {
	h := newHost(t, agent.Options{Context: api.Context{Env: map[string]string{"A": "1"}}})
	c := h.session()
	for path, want := range map[string][]string{
		api.PathMetrics: {`"cpu_count":`, `"mem_total":`, `"disk_used":`, `"ts":`},
		api.PathEnvs:    {`{"A":"1"}`},
	} {
		res, err := c.HTTP().Get(baseURL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		for _, w := range want {
			if !strings.Contains(string(body), w) {
				t.Errorf("%s lacks %s: %s", path, w, body)
			}
		}
	}
}

func TestCallsAfterCloseFail(t *testing.T) {
	c := session(t)
	if err := c.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Health(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	unused := session(t)
	unused.Close()
	if err := unused.Health(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed before use: %v", err)
	}
}

func TestGuestVanishes(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(ours)
	defer c.Close()
	go func() {
		theirs.Read(make([]byte, 100))
		theirs.Close()
	}()
	if err := c.Health(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a guest that dies mid-request: %v", err)
	}
}

func TestSilentGuestTimesOut(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	c := NewClient(ours)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Health(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that says nothing: %v", err)
	}
}

func TestMoreRequestsThanStreams(t *testing.T) {
	c := session(t)
	var wg sync.WaitGroup
	errs := make(chan error, 3000)
	for range 3000 {
		wg.Go(func() { errs <- c.Health(t.Context()) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// echo serves one TCP port that sends back what it gets, after the word "hello".
func echo(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, "hello ")
				io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestDial(t *testing.T) {
	c := session(t)
	port := echo(t)
	conn, err := c.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The server speaks first, before anything was sent.
	first := make([]byte, 6)
	if _, err := io.ReadFull(conn, first); err != nil || string(first) != "hello " {
		t.Fatalf("%q, %v", first, err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := conn.Read(first); err == nil {
		t.Error("a read of nothing ended without a word")
	} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Errorf("the read deadline gave %v", err)
	}
	conn.SetReadDeadline(time.Time{})
	big := strings.Repeat("spore ", 200_000)
	go func() {
		io.WriteString(conn, big)
		conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != big {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(big), err)
	}
}

func TestDialClosedEndsTheGuestsSide(t *testing.T) {
	c := session(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := c.Dial(t.Context(), l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	io.WriteString(conn, "last words")
	conn.Close()
	peer.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(peer); err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDialNobody(t *testing.T) {
	c := session(t)
	// A port that is taken, so that nobody else listens on it meanwhile either.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	taken, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, err := c.Dial(t.Context(), taken.(*unix.SockaddrInet4).Port); !errors.As(err, &e) || e.Status != http.StatusBadGateway {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	for _, p := range []int{0, -1, 65536} {
		if _, err := c.Dial(t.Context(), p); err == nil {
			t.Errorf("port %d was dialed", p)
		}
	}
}

func TestDialEndsWithTheSession(t *testing.T) {
	c := session(t)
	conn, err := c.Dial(t.Context(), echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.ReadFull(conn, make([]byte, 6))
	c.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its session")
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the connection hangs after its session ended")
	}
}
