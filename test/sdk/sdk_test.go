// Package sdk has the public sandbox SDK do what its users do, against a daemon with real machines.
package sdk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
)

// deadline is for the whole of it: a dozen wakes of emulated machines, and some hundred requests.
const deadline = 10 * time.Minute

// maxRunning is how many sandboxes a key may have, so that a thousand requests for one do not fill the machine.
const maxRunning = 4

// templateName is the name that the SDK is given.
const templateName = "sdk-template"

// node is the Node that scripts/sdk installed, and the SDK lies beside it.
func node(t *testing.T) string {
	t.Helper()
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	path, err := filepath.Abs(filepath.Join("node_modules", "node-linux-"+arch, "bin", "node"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the SDK is not installed, run make sdk: %v", err)
	}
	return path
}

// TestDaemon starts one daemon, with one template, for all that is done with it.
func TestDaemon(t *testing.T) {
	nodePath := node(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	d := start(t)
	t.Run("the SDK is content", func(t *testing.T) {
		cmd := exec.CommandContext(ctx, nodePath, "--test", "--test-reporter=spec", "sdk.mjs")
		cmd.Env = append(os.Environ(), "E2B_API_URL="+d.url, "E2B_SANDBOX_URL="+d.url, "E2B_API_KEY=any", "TEMPLATE="+templateName, "NO_COLOR=1")
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // the runner then says what hangs
		cmd.WaitDelay = 30 * time.Second
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(errors.Join(err, ctx.Err()))
		}
	})
	t.Run("a snapshot is looked at", func(t *testing.T) { testSnapshots(t, d) })
	t.Run("what a sandbox sleeps in is no template", func(t *testing.T) { testSleep(t, d) })
	t.Run("a machine that dies", func(t *testing.T) { testDeath(t, d) })
	t.Run("requests that are no good", func(t *testing.T) { testHostile(t, d) })
}

// daemon is a running spore serve.
type daemon struct {
	url string
	pid int
	key string // an API key
}

// start builds spore, makes a template, and starts a daemon that ends with the test.
func start(t *testing.T) *daemon {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		t.Fatalf("building spore: %v\n%s", err, out)
	}
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "spore-sdk-") // short: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(run)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("the daemon left behind: %v", left)
		}
		if err = errors.Join(err, os.RemoveAll(run)); err != nil {
			t.Error(err)
		}
	})
	image := filepath.Join(dir, "image")
	if err := makeImage(image); err != nil {
		t.Fatalf("making an image (`make deps` installs busybox): %v", err)
	}
	spore := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(root, "bin/spore"), args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "SPORE_STORE="+filepath.Join(dir, "store"), "SNAPSHOT_CACHE_DIR="+filepath.Join(dir, "cache"), "SANDBOX_DIR="+run,
			"HOST_KERNELS_DIR="+guest.KernelsDir(os.Getenv), "SPORE_STATE="+filepath.Join(dir, "state"), "SPORE_SOCKET="+filepath.Join(dir, "socket"))
		return cmd
	}
	if out, err := spore("create", "dir:"+image, "-t", templateName, "--memory", "256", "--disk", "128").CombinedOutput(); err != nil {
		t.Fatalf("creating the template: %v\n%s", err, out)
	}
	secret, err := spore("key", "create", "--name", "test").Output()
	if err != nil {
		t.Fatalf("making a key: %v", err)
	}
	cmd := spore("serve", "--listen", "127.0.0.1:0", "--on-exit", "kill", "--max-running", strconv.Itoa(maxRunning))
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, ended := bufio.NewScanner(said), make(chan struct{})
	url := make(chan string, 1)
	go func() {
		defer close(ended)
		defer close(url)
		for lines.Scan() {
			if u, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
				url <- u
			}
			t.Logf("daemon: %s", lines.Text())
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended: %v", err)
		}
	})
	d := &daemon{url: <-url, pid: cmd.Process.Pid, key: strings.TrimSpace(string(secret))}
	if d.url == "" {
		t.Fatal("the daemon did not start")
	}
	return d
}

// makeImage makes a folder with a small Linux system: busybox, a user beside root, and the server of testdata.
func makeImage(dir string) error {
	for _, d := range []string{"bin", "etc", "root", "tmp", "home/app"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if out, err := exec.Command("cp", program, filepath.Join(dir, "bin/busybox")).CombinedOutput(); err != nil {
		return fmt.Errorf("copying busybox: %w: %s", err, out)
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
				return err
			}
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "bin/server"), "./testdata/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
}
