package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
)

// TestStats shows what a daemon has measured, and what the VMM has where it is one that does.
func TestStats(t *testing.T) {
	const runs, sleeps = "3fa90000000000000000000000000000", "4fa90000000000000000000000000000"
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/sandboxes":
			fmt.Fprintf(w, `[{"sandboxID":%q,"state":"running"},{"sandboxID":%q,"state":"paused"}]`, runs, sleeps)
		case "/sandboxes/metrics":
			fmt.Fprintf(w, `{"sandboxes":{%q:{"cpuCount":2,"cpuUsedPct":12.6,"memUsed":1048576,"memTotal":2097152,"diskTotal":4096,"vmm":{"vcpu.exit_io_out":40000000,"balloon.amount_mib":16}}}}`, runs)
		default:
			http.NotFound(w, r)
		}
	}))
	defer daemon.Close()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"stats", "3f"}, exitOK, `(?m)^processors +2, 13% busy\nmemory +1.0 MiB of 2.0 MiB, and 0 B of files\ndisk +0 B of 4.0 KiB\nballoon.amount_mib +16\nvcpu.exit_io_out +40000000$`},
		{[]string{"stats", "3f", "--json"}, exitOK, `"vcpu.exit_io_out": 40000000`},
		{[]string{"stats", "4f"}, exitConflict, "does not run"},
		{[]string{"stats", "5f"}, exitNotFound, "5f"},
	} {
		var out bytes.Buffer
		streams := Streams{In: &out, Out: &out, Err: &out, Getenv: func(name string) string { return map[string]string{"SPORE_URL": daemon.URL}[name] }}
		if code := Main(t.Context(), c.args, streams, "v0"); code != c.code || !regexp.MustCompile(c.says).MatchString(out.String()) {
			t.Errorf("%v: exit code %d, want %d and %s:\n%s", c.args, code, c.code, c.says, out.String())
		}
	}
}
