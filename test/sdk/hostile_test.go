package sdk

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/sandboxapi/openapi/hostile"
)

// call sends a request and returns the status and the body; 0 if there was no answer. It may be called by any goroutine.
func (d *daemon) call(t *testing.T, method, path, body string, header map[string]string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.url+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, nil
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, nil
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode, data
}

// create makes a sandbox with a key.
func (d *daemon) create(t *testing.T, key string) openapi.Sandbox {
	t.Helper()
	status, body := d.call(t, "POST", "/v2/sandboxes", `{"templateID":"`+templateName+`","timeout":600}`, map[string]string{"X-API-Key": key})
	var s openapi.Sandbox
	if err := json.Unmarshal(body, &s); status != http.StatusCreated || err != nil {
		t.Fatalf("%d %s", status, body)
	}
	return s
}

// testSleep tries to get at what a sandbox has in its memory by another's key.
func testSleep(t *testing.T, d *daemon) {
	s := d.create(t, "any")
	path := "/sandboxes/" + s.SandboxID
	if status, body := d.call(t, "POST", path+"/pause", "", nil); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, body)
	}
	_, body := d.call(t, "GET", path, "", nil)
	var asleep openapi.SandboxDetail
	if err := json.Unmarshal(body, &asleep); err != nil || asleep.Spore.Snapshot == "" {
		t.Fatalf("%s: %v", body, err)
	}
	key := map[string]string{"X-API-Key": d.key}
	for _, ref := range []string{"sandbox/" + s.SandboxID, asleep.Spore.Snapshot} {
		if status, body := d.call(t, "POST", "/v2/sandboxes", `{"templateID":"`+ref+`"}`, key); status != http.StatusNotFound {
			t.Errorf("a sandbox is made from %s: %d %s", ref, status, body)
		}
		ref = url.PathEscape(ref)
		for _, request := range [][2]string{{"DELETE", "/templates/" + ref}, {"GET", "/templates/" + ref}, {"GET", "/spore/v1/snapshots/" + ref + "/map"}, {"GET", "/spore/v1/snapshots/" + templateName + "/diff/" + ref}} {
			if status, body := d.call(t, request[0], request[1], "", key); status != http.StatusNotFound {
				t.Errorf("%s: %d %s", request, status, body)
			}
		}
	}
	if _, body := d.call(t, "GET", "/spore/v1/tree", "", key); strings.Contains(string(body), asleep.Spore.Snapshot) {
		t.Errorf("another's key sees it in the tree: %s", body)
	}
	if _, body := d.call(t, "GET", "/spore/v1/tree", "", nil); !strings.Contains(string(body), asleep.Spore.Snapshot) {
		t.Errorf("who needs no key does not see it in the tree: %s", body)
	}
	if status, body := d.call(t, "DELETE", path, "", nil); status != http.StatusNoContent {
		t.Errorf("%d %s", status, body)
	}
}

// testSnapshots looks at the template without waking it.
func testSnapshots(t *testing.T, d *daemon) {
	at := "/spore/v1/snapshots/" + templateName
	get := func(path string, v any) {
		t.Helper()
		status, body := d.call(t, "GET", at+path, "", nil)
		if err := json.Unmarshal(body, v); status != http.StatusOK || err != nil {
			t.Errorf("%s: %d %s %v", path, status, body, err)
		}
	}
	var files []openapi.FileEntry
	get("/files?path=/etc", &files)
	if !slices.ContainsFunc(files, func(f openapi.FileEntry) bool {
		return f.Name == "passwd" && f.Type == "file" && f.Size > 0 && f.Mode == 0o644
	}) {
		t.Errorf("%+v", files)
	}
	for path, want := range map[string]int{"/nowhere": 404, "/etc/passwd": 400, "etc": 400} {
		if status, body := d.call(t, "GET", at+"/files?path="+path, "", nil); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, artifact := range []string{"memfile", "rootfs.ext4"} {
		var m openapi.Map
		get("/map?artifact="+artifact, &m)
		end := int64(0)
		for _, run := range m.Runs {
			if run[0] != end || run[2] >= int64(len(m.Layers)) {
				t.Fatalf("%s: a run %v after %d of %d layers", artifact, run, end, len(m.Layers))
			}
			end += run[1]
		}
		if end != m.Size || len(m.Layers) == 0 {
			t.Errorf("%s: the runs end at %d of %d", artifact, end, m.Size)
		}
	}
	var report struct{ Metadata []any }
	get("/diff/"+templateName, &report)
	if len(report.Metadata) != 0 {
		t.Errorf("it differs from itself: %+v", report)
	}
}

// machines are the processes of machines that the daemon has started.
func (d *daemon) machines(t *testing.T) map[int]bool {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// Number, name in parentheses, state, parent.
		before, after, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(d.pid) && strings.Contains(before, "qemu") {
			pid, _, _ := strings.Cut(before, " ")
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			found[n] = true
		}
	}
	return found
}

// testDeath kills a machine behind the daemon's back.
func testDeath(t *testing.T, d *daemon) {
	before := d.machines(t)
	s := d.create(t, "any")
	agent := map[string]string{"E2b-Sandbox-Id": s.SandboxID, "E2b-Sandbox-Port": "49983", "X-Access-Token": s.EnvdAccessToken}
	if status, body := d.call(t, "GET", "/health", "", agent); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, body)
	}
	for pid := range d.machines(t) {
		if !before[pid] {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	// At first the proxy may only know that it was not answered; that is a 502 too.
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		status, body := d.call(t, "GET", "/health", "", agent)
		if status != http.StatusBadGateway && status != http.StatusNoContent {
			t.Fatalf("%d %s", status, body)
		}
		if strings.Contains(string(body), "has died") {
			break
		}
	}
	if status, body := d.call(t, "GET", "/health", "", agent); status != http.StatusBadGateway || !strings.Contains(string(body), s.SandboxID) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := d.call(t, "GET", "/sandboxes/"+s.SandboxID, "", nil); status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
	if _, body := d.call(t, "GET", "/v2/sandboxes", "", nil); strings.Contains(string(body), s.SandboxID) {
		t.Errorf("it is listed: %s", body)
	}
	if status, body := d.call(t, "GET", "/v2/sandboxes/"+s.SandboxID+"/logs", "", nil); status != http.StatusOK || !strings.Contains(string(body), "message") {
		t.Errorf("nothing tells why: %d %s", status, body)
	}
}

// testHostile sends requests that are made from the document to a daemon with real machines: none may be answered by a fault of the server, and afterwards all
// must be well.
func testHostile(t *testing.T, d *daemon) {
	document, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	auth := map[string]string{"X-API-Key": d.key}
	// living are the sandboxes that there are.
	living := func() (ids []string) {
		_, body := d.call(t, "GET", "/v2/sandboxes?limit=1000", "", auth)
		var left []openapi.ListedSandbox
		if err := json.Unmarshal(body, &left); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		for _, s := range left {
			ids = append(ids, s.SandboxID)
		}
		return ids
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	const workers, requests = 4, 150
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			g := hostile.New(document.Spec(), uint64(100+worker))
			g.Known = map[string][]string{"templateID": {templateName}, "alias": {templateName}, "snapshotID": {templateName}, "otherID": {templateName}}
			g.Leave = []string{"deleteTemplate"} // what all this stands on
			for i := range requests {
				if i%5 == 0 {
					if g.Known["sandboxID"] = living(); len(g.Known["sandboxID"]) < 2 {
						// It may be one too many, as others do the same.
						d.call(t, "POST", "/v2/sandboxes", `{"templateID":"`+templateName+`","timeout":600}`, auth)
						g.Known["sandboxID"] = living()
					}
				}
				req, _ := g.Request(d.url)
				line := fmt.Sprintf("%s %.200s", req.Method, req.URL)
				req.Header.Set("X-API-Key", d.key)
				res, err := client.Do(req.WithContext(t.Context()))
				if err != nil {
					if strings.Contains(err.Error(), "invalid") {
						continue // the client will not send that
					}
					t.Errorf("%s: %v", line, err)
					return
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode >= 500 {
					t.Errorf("%s: %d %.500s %v", line, res.StatusCode, body, err)
				}
			}
		})
	}
	wg.Wait()
	for _, id := range living() {
		if status, body := d.call(t, "DELETE", "/sandboxes/"+id, "", auth); status != http.StatusNoContent && status != http.StatusNotFound {
			t.Errorf("%d %s", status, body)
		}
	}
	s := d.create(t, d.key)
	if status, body := d.call(t, "DELETE", "/sandboxes/"+s.SandboxID, "", auth); status != http.StatusNoContent {
		t.Errorf("%d %s", status, body)
	}
}
