package firecracker

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

const transcriptFile = "testdata/transcript.txt"

// TestTranscript checks that the Firecracker that other tests run on answers as a real one has answered.
func TestTranscript(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the transcript is of an x86 machine")
	}
	replay(t, filepath.Join(fctest.Install(t, "amd64", "1.16.1"), "1.16.1", "amd64", "firecracker"), false)
}

var record = flag.Bool("record", false, "write the transcript anew, from a real Firecracker")

// TestTranscriptReal checks that a real one still does.
func TestTranscriptReal(t *testing.T) {
	path := realBinary(t)
	if found, err := New(Programs{Binary: path}, nil).Installed(t.Context(), runtime.GOARCH); err != nil || !strings.HasPrefix(found.Version, "1.16.") {
		t.Skipf("the transcript is of Firecracker 1.16, this one is %s (%v)", found.Version, err)
	}
	replay(t, path, *record)
}

// replay sends the transcript's requests and compares the answers' status, the last word of each line.
func replay(t *testing.T, binary string, rewrite bool) {
	text, err := os.ReadFile(transcriptFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := snapshotFiles(t, binary)
	var out bytes.Buffer
	var api *client
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		request, want, _ := strings.Cut(line, " → ")
		switch {
		case strings.HasPrefix(line, "machine: "):
			t.Log(line)
			api = bareMachine(t, binary)
		case line != "" && !strings.HasPrefix(line, "#"):
			status := send(t, api, strings.ReplaceAll(request, "{dir}", dir))
			if line = request + " → " + status; !rewrite && status != want {
				t.Errorf("%s → %s, want %s", request, status, want)
			}
		}
		fmt.Fprintln(&out, line)
	}
	if rewrite {
		if err := os.WriteFile(transcriptFile, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// send sends one request and returns the answer's status.
func send(t *testing.T, api *client, request string) string {
	t.Helper()
	method, rest, _ := strings.Cut(request, " ")
	path, body, _ := strings.Cut(rest, " ")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := api.http.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	defer res.Body.Close()
	io.Copy(io.Discard, res.Body)
	return fmt.Sprint(res.StatusCode)
}

// bareMachine starts a process without an engine and returns its API.
func bareMachine(t *testing.T, binary string) *client {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "api")
	cmd := exec.Command(binary, "--api-sock", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	api := newClient(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) })
	t.Cleanup(api.close)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			if conn, err := net.Dial("unix", socket); err == nil {
				conn.Close()
				return api
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("no API after a minute")
		}
	}
}

// snapshotFiles makes a folder with what the transcript loads.
func snapshotFiles(t *testing.T, binary string) string {
	t.Helper()
	dir := t.TempDir()
	config := vmmtest.Config(t, vmmtest.Long())
	kernel, err := os.ReadFile(config.Boot.Kernel)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "kernel.elf"), kernel, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	api := bareMachine(t, binary)
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{"PUT", "/machine-config", machineConfig{VCPUs: 1, MemoryMiB: 16}},
		{"PUT", "/boot-source", bootSource{Kernel: filepath.Join(dir, "kernel.elf")}},
		{"PUT", "/vsock", vsock{CID: 3, Path: filepath.Join(dir, "first")}},
		{"PUT", "/balloon", Balloon{DeflateOnOOM: true}},
		{"PUT", "/actions", action{actionStart}},
		{"PATCH", "/vm", vmState{statePaused}},
		{"PUT", "/snapshot/create", snapshotCreate{snapshotFull, filepath.Join(dir, "state"), filepath.Join(dir, "mem")}},
	} {
		if err := api.call(t.Context(), long, r.method, r.path, r.body, nil); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
