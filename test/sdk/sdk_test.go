// Package sdk has the public sandbox SDK do what its users do, against a daemon with real machines.
package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/builds"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm/qemu"
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

// TestDaemon boots one template for all that is done with it.
func TestDaemon(t *testing.T) {
	nodePath := node(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	dir := t.TempDir()
	imageDir := filepath.Join(dir, "image")
	if err := makeImage(imageDir); err != nil {
		t.Fatalf("making an image (`make deps` installs busybox): %v", err)
	}
	host := newHost(t, dir)
	created, err := host.Create(ctx, sandbox.CreateSpec{
		Names: []string{templateName}, Image: "dir:" + imageDir, Arch: runtime.GOARCH, CPUs: 1, MemoryBytes: 256 << 20, DiskBytes: 128 << 20,
	}, sandbox.NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	created.Close()
	d := serve(t, host, filepath.Join(dir, "state"))

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
	t.Run("a machine that dies", func(t *testing.T) { testDeath(t, d) })
	t.Run("requests that are no good", func(t *testing.T) { testHostile(t, d) })
}

// newHost makes a host of sandboxes on a store of its own.
func newHost(t *testing.T, dir string) *sandbox.Host {
	t.Helper()
	run, err := os.MkdirTemp("", "spore-sdk-") // short: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(run)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("machines were left behind: %v", left)
		}
		if err = errors.Join(err, os.RemoveAll(run)); err != nil {
			t.Error(err)
		}
	})
	cache := filepath.Join(dir, "cache")
	st, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, cache)
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.New(filepath.Join(cache, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	host, err := sandbox.NewHost(sandbox.HostOptions{
		Snapshots: repo, Images: images, Engine: qemu.New(cache), KernelsDir: guest.KernelsDir(os.Getenv), CacheDir: cache, RunDir: run, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// daemon is what is served.
type daemon struct {
	url   string
	fleet *fleet.Fleet
}

// serve serves the API on loopback.
func serve(t *testing.T, host *sandbox.Host, state string) *daemon {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	sandboxes, err := fleet.Open(t.Context(), fleet.Options{Host: host, StateDir: state, Log: log, MaxRunning: maxRunning})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sandboxes.Close(context.Background(), fleet.Kill); err != nil {
			t.Error(err)
		}
	})
	templates, err := builds.New(builds.Options{Host: host, Dir: filepath.Join(state, "builds"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := templates.Close(); err != nil {
			t.Error(err)
		}
	})
	server, err := sandboxapi.New(sandboxapi.Options{
		Sandboxes: sandboxes, Snapshots: host.Snapshots, Builds: templates, Log: log,
		Check: func(ctx context.Context, secret string) (string, error) {
			key, err := sandboxes.Keys().Check(ctx, secret)
			return key.ID, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := sandboxapi.NewHTTPServer(server, nil)
	go web.Serve(l)
	t.Cleanup(func() {
		server.Close()
		web.Close()
	})
	return &daemon{"http://" + l.Addr().String(), sandboxes}
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

// testWriter puts the daemon's log into the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
