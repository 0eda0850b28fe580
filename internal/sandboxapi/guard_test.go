package sandboxapi

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

func TestKeys(t *testing.T) {
	_, open := served(t, nil)
	_, shut := served(t, func(o *Options) { o.Keys = KeysAlways })
	for _, c := range []struct {
		web    *httptest.Server
		header http.Header
		status int
	}{
		{open, header("X-API-Key", ""), 200},
		{open, header("X-API-Key", "anything"), 200},
		{open, header("X-API-Key", "", "Host", "localhost:3000"), 200},
		{open, header("X-API-Key", "", "Host", "evil.example"), 401},
		{open, header("X-API-Key", "spore_bob", "Host", "evil.example"), 200},
		{open, header("X-API-Key", "", "X-Forwarded-For", "10.0.0.1"), 401},
		{open, header("X-API-Key", "", "Forwarded", "for=10.0.0.1"), 401},
		{shut, header("X-API-Key", ""), 401},
		{shut, header("X-API-Key", "anything"), 401},
		{shut, header("X-API-Key", "spore_bob"), 200},
		{shut, header("X-API-Key", "", "Authorization", "Bearer spore_bob"), 200},
		{shut, header("X-API-Key", "", "Authorization", "Bearer spore_eve"), 401},
	} {
		if a := ask(t, c.web, "GET", "/v2/sandboxes", "", c.header); a.status != c.status {
			t.Errorf("%v: %d %s, want %d", c.header, a.status, a.body, c.status)
		}
	}
	for _, path := range []string{"/health", "/ready", "/openapi.json"} {
		if a := ask(t, shut, "GET", path, "", header("X-API-Key", "")); a.status >= 300 {
			t.Errorf("%s wants a key: %d", path, a.status)
		}
	}
}

func TestPagesOfStrangersDoNothingWithoutAKey(t *testing.T) {
	_, open := served(t, func(o *Options) { o.Origins = []string{"https://console.example"} })
	_, shut := served(t, func(o *Options) { o.Keys = KeysAlways })
	body := `{"templateID":"py"}`
	for origin, status := range map[string]int{"https://evil.example": 401, "https://console.example": 201, open.URL: 201} {
		a := ask(t, open, "POST", "/v2/sandboxes", body, header("X-API-Key", "", "Origin", origin))
		if a.status != status {
			t.Errorf("%s: %d %s", origin, a.status, a.body)
		}
	}
	for _, c := range []struct {
		web           *httptest.Server
		origin, allow string
	}{
		{open, "https://evil.example", ""},
		{open, "https://console.example", "https://console.example"},
		{shut, "https://anywhere.example", "*"},
	} {
		a := ask(t, c.web, "OPTIONS", "/v2/sandboxes", "", header("Origin", c.origin, "Access-Control-Request-Method", "POST"))
		if got := a.header.Get("Access-Control-Allow-Origin"); a.status != 204 || got != c.allow {
			t.Errorf("%s: %d, %q is allowed", c.origin, a.status, got)
		}
	}
}

func TestKeysSeeTheirOwn(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	for _, method := range []string{"GET", "DELETE"} {
		if a := ask(t, web, method, "/sandboxes/"+s.SandboxID, "", header("X-API-Key", "spore_bob")); a.status != 404 {
			t.Errorf("bob, %s: %d %s", method, a.status, a.body)
		}
	}
	var listed []openapi.ListedSandbox
	ask(t, web, "GET", "/v2/sandboxes", "", header("X-API-Key", "spore_bob")).into(t, &listed)
	if len(listed) != 0 {
		t.Errorf("bob sees %v", listed)
	}
	ask(t, web, "GET", "/v2/sandboxes", "", header("X-API-Key", "")).into(t, &listed)
	if len(listed) != 1 {
		t.Errorf("who needs no key sees %v", listed)
	}
}

func TestUnixSocketNeedsNoKey(t *testing.T) {
	_, web := served(t, func(o *Options) { o.Keys = KeysAlways })
	socket := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go web.Config.Serve(l)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://spore/v2/sandboxes")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("%d", res.StatusCode)
	}
}
