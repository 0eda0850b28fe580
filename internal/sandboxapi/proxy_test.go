package sandboxapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api/process"
	"github.com/sporevm/spore/internal/guest/api/process/processconnect"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// into is the headers of a request for a port of a sandbox.
func into(s openapi.Sandbox, port string, more ...string) http.Header {
	return header(append([]string{"E2b-Sandbox-Id", s.SandboxID, "E2b-Sandbox-Port", port, "X-API-Key", ""}, more...)...)
}

func TestAgentWantsItsToken(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	var plain openapi.Sandbox
	ask(t, web, "POST", "/sandboxes", `{"templateID":"py"}`, nil).into(t, &plain)
	if plain.EnvdAccessToken != "" {
		t.Errorf("%+v", plain)
	}
	for _, c := range []struct {
		sandbox openapi.Sandbox
		path    string
		token   string
		status  int
	}{
		{s, "/health", "", 204},
		{s, "/metrics", s.EnvdAccessToken, 200},
		{s, "/metrics", "", 401},
		{s, "/metrics", s.EnvdAccessToken + "x", 401},
		{s, "/envs", "token", 401},
		{plain, "/metrics", "", 200},
		// What is between this host and the agent is nobody else's, with any token.
		{s, "/spore/v1/wake", s.EnvdAccessToken, 404},
		{s, "/spore/v1/quiesce", s.EnvdAccessToken, 404},
		{s, "/spore/v1/dial?port=22", s.EnvdAccessToken, 404},
		{s, "/spore%2Fv1/wake", s.EnvdAccessToken, 404},
		{s, "//spore/v1/wake", s.EnvdAccessToken, 404},
		{s, "/process.Process/../spore/v1/wake", s.EnvdAccessToken, 404},
	} {
		for _, method := range []string{"GET", "POST"} {
			if method == "POST" && c.status != 404 {
				continue
			}
			if a := ask(t, web, method, c.path, "", into(c.sandbox, "49983", "X-Access-Token", c.token)); a.status != c.status {
				t.Errorf("%s %s with %q: %d %s", method, c.path, c.token, a.status, a.body)
			}
		}
	}
}

func TestSignedURLs(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	dir := t.TempDir()
	file := filepath.Join(dir, "file name")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	// As the SDK computes them.
	sign := func(path, operation, user, expires string) string {
		text := path + ":" + operation + ":" + user + ":" + s.EnvdAccessToken
		if expires != "" {
			text += ":" + expires
		}
		sum := sha256.Sum256([]byte(text))
		return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
	}
	soon, past := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10), strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)
	for _, c := range []struct {
		what, method, path, user, signature, expires string
		status                                       int
	}{
		{"a read", "GET", file, "", sign(file, "read", "", ""), "", 200},
		{"a read until then", "GET", file, "root", sign(file, "read", "root", soon), soon, 200},
		{"expired", "GET", file, "", sign(file, "read", "", past), past, 401},
		{"expiry left out", "GET", file, "", sign(file, "read", "", soon), "", 401},
		{"another path", "GET", file + "2", "", sign(file, "read", "", ""), "", 401},
		{"another user", "GET", file, "root", sign(file, "read", "", ""), "", 401},
		{"a write", "POST", file + "2", "root", sign(file+"2", "write", "root", ""), "", 200},
		{"a read for a write", "POST", file, "", sign(file, "read", "", ""), "", 401},
		{"nothing", "GET", file, "", "", "", 401},
	} {
		q := url.Values{"path": {c.path}, "signature": {c.signature}}
		if c.user != "" {
			q.Set("username", c.user)
		}
		if c.expires != "" {
			q.Set("signature_expiration", c.expires)
		}
		h := into(s, "49983")
		h.Del("E2b-Sandbox-Id") // a link has no headers
		h.Del("E2b-Sandbox-Port")
		h.Set("Host", "49983-"+s.SandboxID+".localhost")
		h.Set("Content-Type", "application/octet-stream")
		a := ask(t, web, c.method, "/files?"+q.Encode(), "", h)
		if a.status != c.status || c.status == 200 && c.method == "GET" && string(a.body) != "content" {
			t.Errorf("%s: %d %s", c.what, a.status, a.body)
		}
	}
}

func TestStreamsOfTheAgent(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	for name, configure := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) },
		"HTTP/2":   func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		var protocols http.Protocols
		configure(&protocols)
		transport := &http.Transport{Protocols: &protocols}
		defer transport.CloseIdleConnections()
		client := processconnect.NewProcessClient(&http.Client{Transport: transport}, web.URL, connect.WithProtoJSON())
		add := func(h http.Header) {
			for name, v := range into(s, "49983", "X-Access-Token", s.EnvdAccessToken, "Keepalive-Ping-Interval", "50") {
				h[name] = v
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
		add(start.Header())
		stream, err := client.Start(ctx, start)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		next := func() *process.ProcessEvent {
			if !stream.Receive() {
				t.Fatalf("%s: the stream ends: %v", name, stream.Err())
			}
			return stream.Msg().GetEvent()
		}
		pid := next().GetStart().GetPid()
		who := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
		// Each answer must come before the next question is asked.
		input := client.StreamInput(ctx)
		add(input.RequestHeader())
		if err := input.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: who}}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range 3 {
			line := fmt.Sprintf("line %d\n", i)
			in := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(line)}}
			if err := input.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{Input: in}}}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := string(next().GetData().GetStdout()); got != line {
				t.Errorf("%s: %q", name, got)
			}
		}
		if _, err := input.CloseAndReceive(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		end := connect.NewRequest(&process.CloseStdinRequest{Process: who})
		add(end.Header())
		if _, err := client.CloseStdin(ctx, end); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if e := next().GetEnd(); e == nil || e.GetExitCode() != 0 {
			t.Errorf("%s: %v", name, e)
		}
	}
}

// port is where a server of the host's listens, which the agents of the tests take for one in their guest.
func port(t *testing.T, address string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// deserted is a port at which nobody listens. It is taken all the same: one that was let go may be another process's at once.
func deserted(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(at.(*unix.SockaddrInet4).Port)
}

func TestPorts(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "E2b-") || name == "X-Access-Token" || strings.HasPrefix(r.Header.Get(name), "spore_") {
				t.Errorf("%s: %s got in", name, r.Header.Get(name))
			}
		}
		w.Header().Set("X-Host", r.Host)
		w.WriteHeader(http.StatusTeapot)
		io.Copy(w, r.Body)
		fmt.Fprintf(w, " %s %s %s", r.URL, r.Header.Get("Authorization"), r.Header.Get("X-Forwarded-For"))
	}))
	defer inside.Close()
	p := port(t, inside.Listener.Addr().String())
	secrets := []string{"X-Access-Token", s.EnvdAccessToken, "X-API-Key", "spore_alice", "Authorization", "Bearer own"}
	a := ask(t, web, "POST", "/a%2Fb?c=d", "hello", into(s, p, secrets...))
	if a.status != 418 || string(a.body) != "hello /a%2Fb?c=d Bearer own 127.0.0.1" || a.header.Get("X-Host") != "localhost:"+p {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	host := p + "-" + s.SandboxID + ".any.thing"
	a = ask(t, web, "GET", "/", "", header(append(secrets, "Host", host)...))
	if a.status != 418 || a.header.Get("X-Host") != host {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	p = deserted(t)
	a = ask(t, web, "GET", "/", "", into(s, p))
	if a.status != 502 || !strings.Contains(string(a.body), "nothing listens on port "+p) {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, bad := range []string{"0", "65536", "-1", "http"} {
		if a := ask(t, web, "GET", "/", "", into(s, bad)); a.status != 400 {
			t.Errorf("port %s: %d %s", bad, a.status, a.body)
		}
	}
}

func TestPortsStreamAndUpgrade(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	more := make(chan struct{})
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(conn, buf)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		http.NewResponseController(w).Flush()
		<-more
		io.WriteString(w, "data: second\n\n")
	}))
	defer inside.Close()
	p := port(t, inside.Listener.Addr().String())

	req, err := http.NewRequest("GET", web.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = into(s, p)
	res, err := web.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	line, err := lines.ReadString('\n')
	if err != nil || line != "data: first\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(more) // only now: what came before did not wait for it
	rest, err := io.ReadAll(lines)
	if err != nil || string(rest) != "\ndata: second\n\n" {
		t.Errorf("%q %v", rest, err)
	}
	res.Body.Close()

	conn := upgraded(t, web, "GET / HTTP/1.1\r\nHost: "+p+"-"+s.SandboxID+".localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for _, message := range []string{"ping", "pong"} {
		if got := conn.say(message); got != message {
			t.Errorf("%q", got)
		}
	}
}

// raw is a connection that was taken over.
type raw struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

// upgraded sends a request and expects 101.
func upgraded(t *testing.T, web *httptest.Server, request string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, request)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(res.Body)
		t.Fatalf("%s %s", res.Status, body)
	}
	return &raw{conn, t, r}
}

// say sends a message and returns as much as comes back.
func (c *raw) say(message string) string {
	c.t.Helper()
	io.WriteString(c, message)
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c.r, got); err != nil {
		c.t.Fatal(err)
	}
	return string(got)
}

func TestDial(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, err := io.ReadAll(conn) // ends when the other side has said all
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(conn, "%d bytes", len(all))
	}()
	path := "/spore/v1/sandboxes/" + s.SandboxID + "/dial?port=" + port(t, l.Addr().String())
	conn := upgraded(t, web, "POST "+path+" HTTP/1.1\r\nHost: localhost\r\nX-API-Key: spore_alice\r\nConnection: Upgrade\r\nUpgrade: spore-dial\r\n\r\n")
	conn.Write(make([]byte, 1<<20))
	conn.Conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(conn.r)
	if err != nil || string(got) != "1048576 bytes" {
		t.Errorf("%q %v", got, err)
	}
	nowhere := "/spore/v1/sandboxes/" + s.SandboxID + "/dial?port=" + deserted(t)
	if a := ask(t, web, "POST", nowhere, "", header("Connection", "Upgrade", "Upgrade", "spore-dial")); a.status != 502 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, web, "POST", path, "", nil); a.status != 426 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, web, "POST", path, "", header("Connection", "Upgrade", "Upgrade", "spore-dial", "X-API-Key", "spore_bob")); a.status != 404 {
		t.Errorf("bob: %d %s", a.status, a.body)
	}
}

func TestSandboxesThatDoNotAnswer(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	wakes := create(t, web, `{"templateID":"py","autoPause":true,"autoResume":{"enabled":true}}`)
	for _, id := range []string{s.SandboxID, wakes.SandboxID} {
		if a := ask(t, web, "POST", "/sandboxes/"+id+"/pause", "", nil); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	// By the agent's health SDKs tell whether it runs, and 502 is their no.
	if a := ask(t, web, "GET", "/health", "", into(s, "49983")); a.status != 502 {
		t.Errorf("paused: %d %s", a.status, a.body)
	}
	for p, path := range map[string]string{"49983": "/metrics", "80": "/health"} {
		if a := ask(t, web, "GET", path, "", into(s, p)); a.status != 409 {
			t.Errorf("paused: %d %s", a.status, a.body)
		}
		if a := ask(t, web, "GET", "/health", "", into(openapi.Sandbox{SandboxID: "nobody"}, p)); a.status != 404 {
			t.Errorf("unknown: %d %s", a.status, a.body)
		}
	}
	// Without the token it is not even woken.
	if a := ask(t, web, "GET", "/metrics", "", into(wakes, "49983")); a.status != 401 {
		t.Errorf("%d %s", a.status, a.body)
	}
	var d openapi.SandboxDetail
	ask(t, web, "GET", "/sandboxes/"+wakes.SandboxID, "", nil).into(t, &d)
	if d.State != openapi.Paused {
		t.Errorf("a stranger woke it")
	}
	if a := ask(t, web, "GET", "/metrics", "", into(wakes, "49983", "X-Access-Token", wakes.EnvdAccessToken)); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	ask(t, web, "DELETE", "/sandboxes/"+s.SandboxID, "", nil)
	for _, p := range []string{"49983", "80"} {
		if a := ask(t, web, "GET", "/health", "", into(s, p)); a.status != 502 {
			t.Errorf("dead: %d %s", a.status, a.body)
		}
	}
}
