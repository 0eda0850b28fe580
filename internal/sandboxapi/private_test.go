package sandboxapi

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// echo is a server in a sandbox: it says hello, or takes a connection over and repeats what is said. What is not for it fails the test.
func echo(t *testing.T, secrets ...string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			for _, secret := range secrets {
				if strings.Contains(strings.Join(values, " "), secret) {
					t.Errorf("%s: %s got in", name, values)
				}
			}
			if strings.HasPrefix(name, "E2b-") {
				t.Errorf("%s got in", name)
			}
		}
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(w, "hello")
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(conn, buf)
	}))
	t.Cleanup(s.Close)
	return s
}

// TestPrivatePorts tries to get at the ports of a sandbox that were made private.
func TestPrivatePorts(t *testing.T) {
	var logged logBuffer
	_, web := served(t, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	const private = `{"templateID":"py","network":{"allowPublicTraffic":false}}`
	s, other, public := create(t, web, private), create(t, web, private), create(t, web, `{"templateID":"py","network":{"allowPublicTraffic":true}}`)
	if s.TrafficAccessToken == "" || s.TrafficAccessToken == other.TrafficAccessToken || s.TrafficAccessToken == s.EnvdAccessToken || public.TrafficAccessToken != "" {
		t.Fatalf("%+v\n%+v\n%+v", s, other, public)
	}
	p := port(t, echo(t, s.TrafficAccessToken).Listener.Addr().String())
	host := p + "-" + s.SandboxID + ".localhost"
	for _, c := range []struct {
		what    string
		headers []string
		status  int
	}{
		{"nothing", nil, 403},
		{"its token", []string{"E2b-Traffic-Access-Token", s.TrafficAccessToken}, 200},
		{"more than its token", []string{"E2b-Traffic-Access-Token", s.TrafficAccessToken + "x"}, 403},
		{"another's token", []string{"E2b-Traffic-Access-Token", other.TrafficAccessToken}, 403},
		{"the agent's token", []string{"E2b-Traffic-Access-Token", s.EnvdAccessToken}, 403},
		{"its token as the agent's", []string{"X-Access-Token", s.TrafficAccessToken}, 403},
		{"a key", []string{"X-API-Key", "spore_alice"}, 403},
	} {
		for way, h := range map[string]http.Header{"header": into(s, p, c.headers...), "host": header(append([]string{"X-API-Key", "", "Host", host}, c.headers...)...)} {
			a := ask(t, web, "GET", "/", "", h)
			if a.status != c.status || c.status == 200 && string(a.body) != "hello" {
				t.Errorf("with %s, by %s: %d %s, want %d", c.what, way, a.status, a.body, c.status)
			}
			if c.status != 403 {
				continue
			}
			var e openapi.Error
			if a.into(t, &e); e.Code != 403 || !strings.Contains(e.Hint, "trafficAccessToken") || bytes.Contains(a.body, []byte(s.TrafficAccessToken)) {
				t.Errorf("with %s, by %s: %s", c.what, way, a.body)
			}
		}
	}
	if a := ask(t, web, "GET", "/", "", into(public, p)); a.status != 200 {
		t.Errorf("of one whose ports are public: %d %s", a.status, a.body)
	}

	upgrade := "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
	if a := ask(t, web, "GET", "/", "", header("X-API-Key", "", "Host", host, "Connection", "Upgrade", "Upgrade", "websocket")); a.status != 403 {
		t.Errorf("a websocket with nothing: %d %s", a.status, a.body)
	}
	if got := upgraded(t, web, upgrade+"E2b-Traffic-Access-Token: "+s.TrafficAccessToken+"\r\n\r\n").say("ping"); got != "ping" {
		t.Errorf("%q", got)
	}

	// The agent keeps its own token, which the ports' does not replace.
	for token, want := range map[string]int{s.EnvdAccessToken: 200, s.TrafficAccessToken: 401} {
		if a := ask(t, web, "GET", "/metrics", "", into(s, "49983", "X-Access-Token", token)); a.status != want {
			t.Errorf("the agent: %d %s, want %d", a.status, a.body, want)
		}
	}
	if a := ask(t, web, "GET", "/metrics", "", into(s, "49983", "E2b-Traffic-Access-Token", s.TrafficAccessToken)); a.status != 401 {
		t.Errorf("the agent with the ports' token alone: %d %s", a.status, a.body)
	}
	// Who has the key of its owner needs no token to dial.
	dialled := upgraded(t, web, "POST /spore/v1/sandboxes/"+s.SandboxID+"/dial?port="+p+" HTTP/1.1\r\nHost: localhost\r\nX-API-Key: spore_alice\r\nConnection: Upgrade\r\nUpgrade: spore-dial\r\n\r\n")
	if got := dialled.say("GET / HTTP/1.0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 200") {
		t.Errorf("dialled: %q", got)
	}
	// Asleep, it says so to whom it would admit.
	if a := ask(t, web, "POST", "/sandboxes/"+s.SandboxID+"/pause", "", nil); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for token, want := range map[string]int{s.TrafficAccessToken: 409, "": 403} {
		if a := ask(t, web, "GET", "/", "", into(s, p, "E2b-Traffic-Access-Token", token)); a.status != want {
			t.Errorf("asleep, with the token %q: %d %s, want %d", token, a.status, a.body, want)
		}
	}
	web.Close() // requests are logged when they have been answered
	for _, secret := range []string{s.TrafficAccessToken, other.TrafficAccessToken} {
		if strings.Contains(logged.String(), secret) {
			t.Error("a token is in the log")
		}
	}
	if !strings.Contains(logged.String(), "status=403") {
		t.Errorf("the log tells of nothing refused: %.300s", logged.String())
	}
}

// TestPrivateStays looks for the setting, and the token, in all that is told of a sandbox through its life.
func TestPrivateStays(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py","autoPause":true,"autoResume":{"enabled":true},"network":{"allowPublicTraffic":false,"denyOut":["10.0.0.0/8"]}}`)
	at := "/sandboxes/" + s.SandboxID
	p := port(t, echo(t).Listener.Addr().String())
	state := func() openapi.SandboxState {
		t.Helper()
		a := ask(t, web, "GET", at, "", nil)
		var d openapi.SandboxDetail
		if a.into(t, &d); d.Network.AllowPublicTraffic {
			t.Errorf("its ports are told to be public: %s", a.body)
		}
		// As on the platform: this is for all who may see it, and the token is told when one connects.
		if list := ask(t, web, "GET", "/v2/sandboxes", "", nil); bytes.Contains(append(a.body, list.body...), []byte(s.TrafficAccessToken)) {
			t.Errorf("the token is told: %s %s", a.body, list.body)
		}
		return d.State
	}
	state()
	for body, want := range map[string]int{`{"denyOut":[]}`: 204, `{"allowPublicTraffic":true}`: 400} {
		if a := ask(t, web, "PUT", at+"/network", body, nil); a.status != want {
			t.Errorf("%s: %d %s, want %d", body, a.status, a.body, want)
		}
	}
	state()
	if a := ask(t, web, "POST", at+"/pause", "", nil); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	// It wakes by itself, but not for strangers.
	if a := ask(t, web, "GET", "/", "", into(s, p)); a.status != 403 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := state(); got != openapi.Paused {
		t.Errorf("after a stranger's request it is %s", got)
	}
	if a := ask(t, web, "GET", "/", "", into(s, p, "E2b-Traffic-Access-Token", s.TrafficAccessToken)); a.status != 200 || state() != openapi.Running {
		t.Errorf("%d %s", a.status, a.body)
	}
	var again openapi.Sandbox
	if ask(t, web, "POST", at+"/connect", "", nil).into(t, &again); again.TrafficAccessToken != s.TrafficAccessToken {
		t.Errorf("%+v", again)
	}
	var forks []openapi.ForkResult
	if ask(t, web, "POST", at+"/fork", `{"count":2}`, nil).into(t, &forks); len(forks) != 2 {
		t.Fatalf("%+v", forks)
	}
	for _, f := range forks {
		if f.Sandbox == nil || f.Sandbox.TrafficAccessToken == "" || f.Sandbox.TrafficAccessToken == s.TrafficAccessToken {
			t.Errorf("%+v", f.Sandbox)
		}
	}
}

// TestPrivateNeedsSecure makes no sandbox whose ports want a token while its agent, which can reach them, wants none.
func TestPrivateNeedsSecure(t *testing.T) {
	_, web := served(t, nil)
	for body, want := range map[string]int{
		`{"templateID":"py","network":{"allowPublicTraffic":false}}`:               400,
		`{"templateID":"py","secure":true,"network":{"allowPublicTraffic":false}}`: 201,
		`{"templateID":"py","network":{"allowPublicTraffic":true}}`:                201,
	} {
		if a := ask(t, web, "POST", "/sandboxes", body, nil); a.status != want {
			t.Errorf("%s: %d %s, want %d", body, a.status, a.body, want)
		}
	}
}
