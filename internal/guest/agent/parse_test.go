package agent

import (
	"bytes"
	"encoding/binary"
	"mime/multipart"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// notice builds an event as the kernel writes it.
func notice(wd int32, mask uint32, name string, padded int) []byte {
	b := make([]byte, unix.SizeofInotifyEvent+padded)
	binary.NativeEndian.PutUint32(b, uint32(wd))
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(padded))
	copy(b[unix.SizeofInotifyEvent:], name)
	return b
}

func TestParseInotify(t *testing.T) {
	buf := append(notice(1, unix.IN_CREATE, "file", 16), notice(2, unix.IN_IGNORED, "", 0)...)
	buf = append(buf, notice(3, unix.IN_MODIFY, "torn", 16)[:20]...)
	var got []inotifyEvent
	for e := range parseInotify(buf) {
		got = append(got, e)
	}
	if len(got) != 2 || got[0] != (inotifyEvent{1, unix.IN_CREATE, "file"}) || got[1] != (inotifyEvent{2, unix.IN_IGNORED, ""}) {
		t.Errorf("%+v", got)
	}
}

func FuzzParseInotify(f *testing.F) {
	f.Add(notice(1, 2, "name", 16))
	f.Add(notice(-1, 0xffffffff, "", 0))
	f.Fuzz(func(t *testing.T, buf []byte) {
		total := 0
		for e := range parseInotify(buf) {
			if strings.IndexByte(e.name, 0) >= 0 {
				t.Fatalf("%q holds a zero byte", e.name)
			}
			total += unix.SizeofInotifyEvent + len(e.name)
		}
		if total > len(buf) {
			t.Fatalf("%d bytes of events out of %d", total, len(buf))
		}
	})
}

func TestCounter(t *testing.T) {
	events := []byte("low 0\nhigh 3\nmax 12\noom 2\noom_kill 5\noom_group_kill 0\n")
	if n, ok := counter(events, "oom_kill"); !ok || n != 5 {
		t.Errorf("%d, %v", n, ok)
	}
	for _, bad := range []string{"", "oom_kill", "oom_kill x\n", "xoom_kill 4\n"} {
		if n, ok := counter([]byte(bad), "oom_kill"); ok {
			t.Errorf("%q gave %d", bad, n)
		}
	}
}

func TestOOMKillsPreferTheCgroup(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/memory.events", []byte("oom_kill 987654\n"), 0o644)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := oomKills(int(f.Fd())); n != 987654 {
		t.Errorf("%d", n)
	}
	os.Remove(dir + "/memory.events")
	if n := oomKills(int(f.Fd())); n != oomKills(0) || n == 987654 {
		t.Errorf("without a counter of its own: %d", n)
	}
}

func TestOOMIsToldFromOtherKills(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/memory.events", []byte("oom_kill 2\n"), 0o644)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	count := func() int64 { return oomKills(int(f.Fd())) }
	killed, exited := unix.WaitStatus(unix.SIGKILL), func(code int) unix.WaitStatus { return unix.WaitStatus(code << 8) }
	for _, tc := range []struct {
		name   string
		before int64
		ours   bool
		status unix.WaitStatus
		want   bool
	}{
		{"killed as the counter rose", 1, false, killed, true},
		{"killed by someone", 2, false, killed, false},
		{"killed by us as the counter rose", 1, true, killed, false},
		{"a shell whose child was killed", 1, false, exited(137), true},
		{"an exit as the counter rose", 1, false, exited(1), false},
	} {
		p := &proc{oomKills: count, oomBefore: tc.before, killed: tc.ours}
		if got := p.endEvent(tc.status).GetOomKilled(); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestStatusText(t *testing.T) {
	for status, want := range map[unix.WaitStatus]string{
		0: "exit status 0", 3 << 8: "exit status 3", 9: "signal: killed", 11 | 0x80: "signal: segmentation fault (core dumped)",
	} {
		if got := statusText(status); got != want {
			t.Errorf("%#x: %q, want %q", int(status), got, want)
		}
	}
}

func TestCPUTicks(t *testing.T) {
	busy, total := cpuTicks([]byte("cpu  10 20 30 400 50 6 7 8 9 1\ncpu0 1 1 1 1\n"))
	if busy != 81 || total != 531 {
		t.Errorf("%d of %d", busy, total)
	}
	for _, bad := range []string{"", "cpu", "intr 1 2 3 4", "cpu a b c d e"} {
		if b, n := cpuTicks([]byte(bad)); b != 0 || n != 0 {
			t.Errorf("%q: %d of %d", bad, b, n)
		}
	}
}

func TestCPUMeter(t *testing.T) {
	var m cpuMeter
	m.percent(100, 1000)
	if got := m.percent(150, 1100); got != 50 {
		t.Errorf("%v", got)
	}
	if got := m.percent(150, 1100); got != 0 {
		t.Errorf("no time passed: %v", got)
	}
}

func TestKeepalive(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 0, "50": 50 * time.Second, "-1": 0, "x": 0, "99999999": 0} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set(keepaliveHeader, value)
		if got := keepalive(r.Header); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
}

// FuzzUpload feeds a form to the parser as a hostile SDK would. All paths it
// names are caught under one directory.
func FuzzUpload(f *testing.F) {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	w.SetBoundary("seed")
	part, _ := w.CreateFormFile("file", "a/b")
	part.Write([]byte("content"))
	w.Close()
	f.Add("multipart/form-data; boundary=seed", "", form.Bytes())
	f.Add("application/octet-stream", "gzip", []byte("\x1f\x8b\x08\x00"))
	f.Add("multipart/form-data", "", []byte("--\r\n"))
	f.Add("text/plain; =", "identity", []byte("x"))
	dir := f.TempDir()
	s := New(Options{})
	f.Fuzz(func(t *testing.T, kind, encoding string, body []byte) {
		r := httptest.NewRequest("POST", "/files?path="+filepath.Join(dir, "target"), bytes.NewReader(body))
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Content-Encoding", encoding)
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r)
		if rec.Code == 500 {
			t.Fatalf("%s", rec.Body)
		}
	})
}
