// Package console tests the web console in a real browser: the scripts are in internal/console/web/e2e.
package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// web is the folder of the console's source, where its scripts find the browser's driver.
const web = "../../internal/console/web"

// browser runs a script of checks in Debian's Chromium, each as a test of its own. Arguments reach the script by its environment. Pictures that it takes go
// to $SPORE_CONSOLE_SHOTS, if that is set.
func browser(t *testing.T, script string, env ...string) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no node: `make deps`")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium: `make deps`")
	}
	if _, err := os.Stat(filepath.Join(web, "node_modules", "playwright-core")); err != nil {
		t.Skip("the console's packages are not installed: `make web`")
	}
	if _, err := os.Stat(filepath.Join(web, "..", "dist", "index.html")); err != nil {
		t.Skip("the console has not been built: `make web`")
	}
	shots := os.Getenv("SPORE_CONSOLE_SHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		// The script is to say where it stood before the test's own end says nothing but where Go did.
		early, cancel := context.WithDeadline(ctx, deadline.Add(-time.Minute))
		defer cancel()
		ctx = early
	}
	cmd := exec.CommandContext(ctx, node, filepath.Join("e2e", script))
	cmd.Dir = web
	cmd.Env = append(os.Environ(), "CHROMIUM="+chromium, "SHOTS="+shots, "TMPDIR="+t.TempDir())
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	// The browser is many processes: they go together, and by request rather than by force as long as they heed it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	checks := results(t, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", script, err)
	}
	if checks == 0 {
		t.Errorf("%s checked nothing", script)
	}
}

// results reads what a script found: a line of JSON for each check.
func results(t *testing.T, out io.Reader) int {
	checks := 0
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var check struct {
			Name  string `json:"name"`
			Error string `json:"error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &check); err != nil || check.Name == "" {
			t.Log(lines.Text())
			continue
		}
		checks++
		t.Run(strings.ReplaceAll(check.Name, "/", "|"), func(t *testing.T) {
			if check.Error != "" {
				t.Error(check.Error)
			}
		})
	}
	if err := lines.Err(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	return checks
}

func TestAgainstDouble(t *testing.T) {
	d := newDouble(t, "spore_secret")
	server := httptest.NewServer(d)
	defer server.Close()
	browser(t, "double.mjs", "URL="+server.URL, "KEY="+d.key, "HOME_DIR="+d.home)
}
