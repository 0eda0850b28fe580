package sandboxapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/snapshot"
)

// answered is what came back.
type answered struct {
	status int
	header http.Header
	body   []byte
}

func (a answered) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
}

// ask sends a request as alice; headers that are given win.
func ask(t *testing.T, web *httptest.Server, method, path, body string, h http.Header) answered {
	t.Helper()
	req, err := http.NewRequest(method, web.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", "spore_alice")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range h {
		req.Header[name] = values
	}
	if host := h.Get("Host"); host != "" {
		req.Host = host
	}
	res, err := web.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answered{res.StatusCode, res.Header, data}
	if a.status >= 400 && h.Get("E2b-Sandbox-Id") == "" && res.Header.Get("Content-Type") == "application/json" {
		var e openapi.Error
		if err := json.Unmarshal(data, &e); err != nil || e.Code != 0 && (int(e.Code) != a.status || e.Message == "" || e.Hint == "") {
			t.Errorf("%s %s: %d %s: an error says its code, what is wrong, and what to do", method, path, a.status, data)
		}
	}
	return a
}

// create makes a sandbox, as alice.
func create(t *testing.T, web *httptest.Server, body string) openapi.Sandbox {
	t.Helper()
	a := ask(t, web, "POST", "/v2/sandboxes", body, nil)
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var s openapi.Sandbox
	a.into(t, &s)
	return s
}

func TestLife(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py","timeout":60,"metadata":{"a":"b"},"autoPause":true}`)
	if s.EnvdAccessToken == "" || s.EnvdVersion == "" || s.Alias != "py" || !strings.HasPrefix(s.Domain, "localhost:") {
		t.Errorf("%+v", s)
	}
	at := "/sandboxes/" + s.SandboxID
	var d openapi.SandboxDetail
	ask(t, web, "GET", at, "", nil).into(t, &d)
	if d.State != openapi.Running || d.Lifecycle.OnTimeout != openapi.Pause || d.Metadata["a"] != "b" || d.MemoryMB != 256 || d.EndAt.Sub(d.StartedAt) != time.Minute {
		t.Errorf("%+v", d)
	}
	for _, step := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", at + "/timeout", `{"timeout":120}`, 204},
		{"POST", at + "/refreshes", `{"duration":120}`, 204},
		{"POST", at + "/refreshes", ``, 204},
		{"POST", at + "/pause", `{}`, 204},
		{"POST", at + "/pause", ``, 409},
		{"POST", at + "/pause", `{"memory":false}`, 400},
		{"GET", at, ``, 200},
		{"POST", at + "/fork", ``, 409},
		{"POST", at + "/resume", `{"timeout":30}`, 201},
		{"POST", at + "/resume", `{"timeout":30}`, 409},
		{"POST", at + "/connect", `{"timeout":30}`, 200},
		{"POST", "/v2" + at + "/connect", ``, 200},
		{"PUT", at + "/network", `{"allow_internet_access":true}`, 204},
		{"PUT", at + "/network", `{"allow_internet_access":false}`, 400},
		{"PUT", at + "/network", `{"denyOut":["10.0.0.0/8"]}`, 204},
		{"PUT", at + "/network", `{"denyOut":["nowhere"]}`, 400},
		{"PUT", at + "/network", `{"rules":{"example.com":[]}}`, 400},
		{"GET", at + "/metrics?start=1&end=2", ``, 200},
		{"DELETE", at, ``, 204},
		{"DELETE", at, ``, 404},
		{"GET", at, ``, 404},
		{"POST", at + "/connect", `{}`, 404},
		{"GET", "/sandboxes/nobody", ``, 404},
	} {
		if a := ask(t, web, step.method, step.path, step.body, nil); a.status != step.status {
			t.Errorf("%s %s %s: %d %s, want %d", step.method, step.path, step.body, a.status, a.body, step.status)
		}
	}
}

func TestList(t *testing.T) {
	_, web := served(t, nil)
	var ids []string
	for _, body := range []string{`{"templateID":"py","metadata":{"user name":"a&b=c%"}}`, `{"templateID":"web"}`, `{"templateID":"py"}`} {
		ids = append(ids, create(t, web, body).SandboxID)
	}
	ask(t, web, "POST", "/sandboxes/"+ids[1]+"/pause", "", nil)
	// As the SDK encodes it: both parts, then the pairs, then the parameter.
	wanted := url.QueryEscape(url.Values{url.PathEscape("user name"): {url.PathEscape("a&b=c%")}}.Encode())
	for query, want := range map[string][]int{
		"/v2/sandboxes":                                       {2, 1, 0},
		"/v2/sandboxes?order=asc":                             {0, 1, 2},
		"/v2/sandboxes?state=running":                         {2, 0},
		"/v2/sandboxes?state=running,paused":                  {2, 1, 0},
		"/v2/sandboxes?state=paused&template=web":             {1},
		"/v2/sandboxes?template=py":                           {2, 0},
		"/v2/sandboxes?metadata=" + wanted:                    {0},
		"/v2/sandboxes?metadata=x%3Dy":                        {},
		"/v2/sandboxes?startedAfter=1970-01-12T13:46:42.000Z": {2, 1},
		"/v2/sandboxes?limit=1&order=asc":                     {0},
		"/sandboxes":                                          {2, 0},
		"/sandboxes?metadata=" + wanted:                       {0},
	} {
		a := ask(t, web, "GET", query, "", nil)
		var listed []openapi.ListedSandbox
		a.into(t, &listed)
		var got []string
		for _, l := range listed {
			got = append(got, l.SandboxID)
			if l.Spore.Net != "tap" {
				t.Errorf("%s: what spore knows of %s: %+v", query, l.SandboxID, l.Spore)
			}
		}
		var names []string
		for _, i := range want {
			names = append(names, ids[i])
		}
		if strings.Join(got, " ") != strings.Join(names, " ") {
			t.Errorf("%s: %v, want %v", query, got, names)
		}
	}
	var seen []string
	for token := ""; ; {
		a := ask(t, web, "GET", "/v2/sandboxes?limit=2&nextToken="+url.QueryEscape(token), "", nil)
		var listed []openapi.ListedSandbox
		a.into(t, &listed)
		for _, l := range listed {
			seen = append(seen, l.SandboxID)
		}
		if got := a.header.Get("X-Total-Running"); got != "2" {
			t.Errorf("%s run", got)
		}
		if token = a.header.Get("X-Next-Token"); token == "" {
			break
		}
	}
	if len(seen) != 3 {
		t.Errorf("the pages hold %v", seen)
	}
}

func TestReach(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py","network":{"allowOut":["10.1.2.3"],"denyOut":["0.0.0.0/0"]}}`)
	var d openapi.SandboxDetail
	ask(t, web, "GET", "/sandboxes/"+s.SandboxID, "", nil).into(t, &d)
	if strings.Join(d.Network.AllowOut, " ") != "10.1.2.3/32" || strings.Join(d.Network.DenyOut, " ") != "0.0.0.0/0" || d.AllowInternetAccess == nil || *d.AllowInternetAccess {
		t.Errorf("%+v", d)
	}
	// What an update leaves out is in force no longer.
	if a := ask(t, web, "PUT", "/sandboxes/"+s.SandboxID+"/network", `{"denyOut":["10.0.0.0/8"]}`, nil); a.status != 204 {
		t.Errorf("%d %s", a.status, a.body)
	}
	var after openapi.SandboxDetail
	ask(t, web, "GET", "/sandboxes/"+s.SandboxID, "", nil).into(t, &after)
	if len(after.Network.AllowOut) > 0 || strings.Join(after.Network.DenyOut, " ") != "10.0.0.0/8" || after.AllowInternetAccess == nil || !*after.AllowInternetAccess {
		t.Errorf("%+v", after)
	}
}

func TestForksReportEachForItself(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	a := ask(t, web, "POST", "/sandboxes/"+s.SandboxID+"/fork", `{"count":4}`, nil)
	var forks []openapi.ForkResult
	a.into(t, &forks)
	if a.status != 201 || len(forks) != 4 || forks[0].Sandbox == nil || forks[0].Error != nil || forks[3].Error == nil || forks[3].Error.Code != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a.header.Get("Spore-Stopped-Ms") != "19.000" || a.header.Get("Spore-Snapshot") == "" {
		t.Errorf("%v", a.header)
	}
}

func TestTemplatesAndSnapshots(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	var snap openapi.SnapshotInfo
	ask(t, web, "POST", "/sandboxes/"+s.SandboxID+"/snapshots", `{"name":"later"}`, nil).into(t, &snap)
	var list []openapi.SnapshotInfo
	ask(t, web, "GET", "/snapshots?sandboxID="+s.SandboxID+"&name=later", "", nil).into(t, &list)
	if len(list) != 1 || list[0].SnapshotID != snap.SnapshotID || list[0].Names[0] != "later" {
		t.Errorf("%+v", list)
	}
	ask(t, web, "GET", "/snapshots?sandboxID=another", "", nil).into(t, &list)
	if len(list) != 0 {
		t.Errorf("%+v", list)
	}
	var names []string
	for token := ""; ; {
		a := ask(t, web, "GET", "/v2/templates?limit=1&nextToken="+token, "", nil)
		var page []openapi.Template
		a.into(t, &page)
		for _, p := range page {
			names = append(names, p.Names...)
		}
		if token = a.header.Get("X-Next-Token"); token == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "later web py" {
		t.Errorf("templates: %s", got)
	}
	for _, step := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/templates", "", 200},
		{"GET", "/templates/py", "", 200},
		{"GET", "/templates/aliases/py", "", 200},
		{"GET", "/templates/aliases/none", "", 404},
		{"PATCH", "/templates/py", `{"public":true}`, 200},
		{"PATCH", "/templates/py", `{"public":false}`, 400},
		{"GET", "/templates/py/tags", "", 200},
		{"GET", "/templates/none/tags", "", 404},
		{"POST", "/templates/tags", `{"target":"none","tags":["v1"]}`, 404},
		{"POST", "/templates/tags", `{"target":"py","tags":["v/1"]}`, 400},
		{"DELETE", "/templates/tags", `{"name":"py","tags":["v1"]}`, 404},
		{"DELETE", "/templates/tags", `{"name":"sandbox/0123","tags":["default"]}`, 400},
		{"DELETE", "/templates/py", "", 409},
		{"DELETE", "/templates/later", "", 204},
		{"DELETE", "/templates/later", "", 404},
		{"GET", "/v2/templates?nextToken=x", "", 400},
		{"GET", "/spore/v1/tree", "", 200},
		{"GET", "/spore/v1/info", "", 200},
		{"GET", "/spore/v1/snapshots/none/map", "", 404},
		{"GET", "/spore/v1/snapshots/none/diff/neither", "", 404},
	} {
		if a := ask(t, web, step.method, step.path, step.body, nil); a.status != step.status {
			t.Errorf("%s %s %s: %d %s, want %d", step.method, step.path, step.body, a.status, a.body, step.status)
		}
	}
}

func TestLogsAndMetrics(t *testing.T) {
	_, web := served(t, nil)
	s := create(t, web, `{"templateID":"py"}`)
	for query, want := range map[string]string{
		"":                                "woken,slow,woken again",
		"?direction=backward":             "woken again,slow,woken",
		"?cursor=1000":                    "slow,woken again",
		"?cursor=3000&direction=backward": "slow,woken",
		"?level=info":                     "woken,slow",
		"?search=woken&limit=1":           "woken",
	} {
		var got struct{ Logs []openapi.LogEntry }
		ask(t, web, "GET", "/v2/sandboxes/"+s.SandboxID+"/logs"+query, "", nil).into(t, &got)
		var messages []string
		for _, e := range got.Logs {
			messages = append(messages, e.Message)
		}
		if strings.Join(messages, ",") != want {
			t.Errorf("%s: %v, want %s", query, messages, want)
		}
	}
	var old struct{ Logs []struct{ Line string } }
	ask(t, web, "GET", "/sandboxes/"+s.SandboxID+"/logs?limit=2", "", nil).into(t, &old)
	if len(old.Logs) != 2 || old.Logs[1].Line != "slow" {
		t.Errorf("%+v", old)
	}
	var latest struct {
		Sandboxes map[string]openapi.SandboxMetric
	}
	ask(t, web, "GET", "/sandboxes/metrics?sandbox_ids="+s.SandboxID+",nobody", "", nil).into(t, &latest)
	if got := latest.Sandboxes[s.SandboxID]; len(latest.Sandboxes) != 1 || got.CPUUsedPct != 75 || got.VMM["block.read_bytes"] != 7 {
		t.Errorf("%+v", latest)
	}
}

// Damage is known as such by programs, whether a sandbox can't start for it or has died of it.
func TestDamageIsTold(t *testing.T) {
	tn, web := served(t, nil)
	corrupt := &block.CorruptError{Artifact: "memfile of x", Err: errors.New("flipped")}
	for what, c := range map[string]struct {
		err     error
		status  int
		damaged bool
	}{
		"a wake":   {fmt.Errorf("starting the sandbox: %w", &block.Told{Text: "reading memory: flipped", Corrupt: corrupt}), 500, true},
		"opening":  {fmt.Errorf("opening: %w", &snapshot.CorruptError{Artifact: "metadata.json", Err: errors.New("flipped")}), 500, true},
		"a death":  {&fleet.Error{Kind: fleet.Gone, Message: "it died: flipped", Damaged: true, Hint: "restore it"}, 404, true},
		"anything": {errors.New("flipped"), 500, false},
	} {
		tn.mu.Lock()
		tn.full = c.err
		tn.mu.Unlock()
		a := ask(t, web, "POST", "/v2/sandboxes", `{"templateID":"py"}`, nil)
		var e openapi.Error
		if a.into(t, &e); a.status != c.status || e.Damaged != c.damaged || !strings.Contains(e.Message, "flipped") || c.damaged && !strings.Contains(e.Hint, "restore") {
			t.Errorf("%s: %d %+v, want %d and damaged %v", what, a.status, e, c.status, c.damaged)
		}
	}
}

func TestErrorsSayWhoseTurnItIs(t *testing.T) {
	tn, web := served(t, nil)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/v2/sandboxes", `{`, 400, "the body"},
		{"POST", "/v2/sandboxes", `{}`, 400, "templateID"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","timeout":-1}`, 400, "timeout"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","timeout":"soon"}`, 400, "timeout"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","autoResume":{"enabled":true}}`, 400, "autoPause"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","allow_internet_access":false}`, 400, "network"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","network":{"denyOut":["example.com"]}}`, 400, "example.com"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","network":{"egressProxy":{"address":"a:1"}}}`, 400, "network"},
		{"POST", "/v2/sandboxes", `{"templateID":"py","volumeMounts":[{"name":"v","path":"/v"}]}`, 400, "volumeMounts"},
		{"POST", "/v2/sandboxes", `{"templateID":"none"}`, 404, "none"},
		{"POST", "/v2/sandboxes", `{"templateID":"` + strings.Repeat("x", 2<<20) + `"}`, 413, "larger"},
		{"GET", "/v2/sandboxes?limit=0", "", 400, "limit"},
		{"GET", "/v2/sandboxes?limit=many", "", 400, "limit"},
		{"GET", "/v2/sandboxes?nextToken=x", "", 400, "token"},
		{"GET", "/v2/sandboxes?metadata=%25zz", "", 400, "metadata"},
		{"GET", "/sandboxes/..%2f..", "", 400, "sandboxID"},
		{"GET", "/nowhere", "", 404, "/openapi.json"},
		{"PUT", "/v2/sandboxes", "", 405, "GET, POST"},
	} {
		a := ask(t, web, c.method, c.path, c.body, nil)
		var e openapi.Error
		a.into(t, &e)
		if a.status != c.status || int(e.Code) != c.status || !strings.Contains(e.Message, c.says) || e.Hint != "" && !strings.Contains(e.Message, e.Hint) {
			t.Errorf("%s %s %.60s: %d %s, want %d and %q", c.method, c.path, c.body, a.status, a.body, c.status, c.says)
		}
	}
	for _, c := range []struct {
		err    fleet.Error
		status int
		retry  string
	}{
		{fleet.Error{Kind: fleet.Quota, Message: "enough", Hint: "kill some", Retry: 1500 * time.Millisecond}, 429, "2"},
		{fleet.Error{Kind: fleet.Busy, Message: "no memory"}, 503, "1"},
		{fleet.Error{Kind: fleet.Internal, Message: "broken"}, 500, ""},
	} {
		tn.full = &c.err
		a := ask(t, web, "POST", "/sandboxes", `{"templateID":"py"}`, nil)
		if a.status != c.status || a.header.Get("Retry-After") != c.retry || !bytes.Contains(a.body, []byte(c.err.Hint)) {
			t.Errorf("%d %v %s", a.status, a.header, a.body)
		}
	}
}
