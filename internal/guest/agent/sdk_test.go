package agent

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// These tests speak as public SDKs do: HTTP/1.1, the JSON codec, and names that
// must not change.

// envelope frames one message of a Connect stream.
func envelope(message string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	return append(b, message...)
}

// messages takes the frames of a stream apart.
func messages(t *testing.T, stream []byte) []string {
	t.Helper()
	var all []string
	for len(stream) >= 5 {
		n := int(binary.BigEndian.Uint32(stream[1:]))
		if n > len(stream)-5 {
			t.Fatalf("a torn stream: %q", stream)
		}
		all = append(all, string(stream[5:5+n]))
		stream = stream[5+n:]
	}
	return all
}

// call posts as user "nobody" and returns status and body.
func call(t *testing.T, url, kind string, body []byte) (int, []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Connect-Protocol-Version", "1")
	req.Header.Set("Keepalive-Ping-Interval", "50")
	req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("nobody:")))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, answer
}

func sdkServer(t *testing.T) string {
	t.Helper()
	s := New(Options{})
	web := httptest.NewServer(s)
	t.Cleanup(func() { web.Close(); s.Close() })
	return web.URL
}

func TestSDKRun(t *testing.T) {
	url := sdkServer(t)
	status, stream := call(t, url+"/process.Process/Start", "application/connect+json", envelope(
		`{"process":{"cmd":"/bin/sh","args":["-c","echo $0 $A; echo err >&2; exit 3","name"],"envs":{"A":"b"},"cwd":"/"},"stdin":false}`))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, stream)
	}
	var out, errs []byte
	var kinds []string
	for _, m := range messages(t, stream) {
		var e struct {
			Event struct {
				Start *struct{ Pid int }
				Data  *struct{ Stdout, Stderr []byte }
				End   *struct {
					ExitCode      int
					Exited        bool
					Status, Error string
				}
			}
		}
		if err := json.Unmarshal([]byte(m), &e); err != nil {
			t.Fatalf("%s: %v", m, err)
		}
		switch ev := e.Event; {
		case ev.Start != nil:
			kinds = append(kinds, "start")
			if ev.Start.Pid <= 0 {
				t.Errorf("no pid: %s", m)
			}
		case ev.Data != nil:
			out, errs = append(out, ev.Data.Stdout...), append(errs, ev.Data.Stderr...)
		case ev.End != nil:
			kinds = append(kinds, "end")
			if ev.End.ExitCode != 3 || !ev.End.Exited || ev.End.Status != "exit status 3" || ev.End.Error == "" {
				t.Errorf("the end: %s", m)
			}
		}
	}
	if strings.Join(kinds, " ") != "start end" || string(out) != "name b\n" || string(errs) != "err\n" {
		t.Errorf("%q, %q, %q", kinds, out, errs)
	}
}

func TestSDKErrorsAndFiles(t *testing.T) {
	url := sdkServer(t)
	dir := t.TempDir()
	for _, tc := range []struct {
		route, body string
		status      int
		says        string
	}{
		{"process.Process/List", `{}`, 200, `{}`},
		{"process.Process/SendSignal", `{"process":{"pid":999999999},"signal":"SIGNAL_SIGKILL"}`, 404, `"code":"not_found"`},
		{"filesystem.Filesystem/MakeDir", `{"path":"` + dir + `/d"}`, 200, `"type":"FILE_TYPE_DIRECTORY"`},
		{"filesystem.Filesystem/MakeDir", `{"path":"` + dir + `/d"}`, 409, `"code":"already_exists"`},
		{"filesystem.Filesystem/Stat", `{"path":"` + dir + `/d"}`, 200, `"owner":"nobody"`},
		{"filesystem.Filesystem/Stat", `{"path":"` + dir + `/none"}`, 404, `"code":"not_found"`},
		{"filesystem.Filesystem/ListDir", `{"path":"` + dir + `","depth":1}`, 200, `"entries":[{"name":"d"`},
	} {
		status, answer := call(t, url+"/"+tc.route, "application/json", []byte(tc.body))
		// protojson puts spaces where it likes, on purpose.
		if got := strings.ReplaceAll(string(answer), " ", ""); status != tc.status || !strings.Contains(got, tc.says) {
			t.Errorf("%s %s: %d %s", tc.route, tc.body, status, answer)
		}
	}
}
