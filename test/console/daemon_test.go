package console

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
)

// TestAgainstDaemon has the browser make, use, freeze, wake, fork, compare and kill real machines, through the program as users run it.
func TestAgainstDaemon(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		t.Fatalf("building spore: %v\n%s", err, out)
	}
	lab, err := sandboxtest.New(t.Context())
	if err != nil {
		t.Fatalf("preparing the tests: %v", err)
	}
	defer lab.Close()
	run, err := os.MkdirTemp("", "spore-run") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if left, err := os.ReadDir(run); err != nil || len(left) > 0 {
			t.Errorf("left in the run folder: %v, %v", left, err)
		}
		os.RemoveAll(run)
	}()
	d := &daemon{t: t, spore: filepath.Join(root, "bin", "spore"), env: append(os.Environ(),
		"HOME="+t.TempDir(), "SPORE_STORE="+filepath.Join(lab.Dir, "store"), "SNAPSHOT_CACHE_DIR="+filepath.Join(lab.Dir, "cache"),
		"HOST_KERNELS_DIR="+guest.KernelsDir(os.Getenv), "SANDBOX_DIR="+run, "SPORE_STATE="+t.TempDir(), "SPORE_SOCKET="+filepath.Join(t.TempDir(), "daemon"),
	)}
	secret := strings.TrimSpace(d.output("key", "create", "--name", "browser"))

	url, stop := d.serve("--keys", "always")
	browser(t, "daemon.mjs", "URL="+url, "KEY="+secret, "TEMPLATE="+sandboxtest.Name)
	stop()

	// Started again, it knows what sleeps, and on loopback it asks for no key.
	url, stop = d.serve()
	browser(t, "restart.mjs", "URL="+url)
	stop()
}

// daemon runs spore.
type daemon struct {
	t     *testing.T
	spore string
	env   []string
}

func (d *daemon) output(args ...string) string {
	d.t.Helper()
	cmd := exec.CommandContext(d.t.Context(), d.spore, args...)
	cmd.Env, cmd.Stderr = d.env, d.t.Output()
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("spore %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// serve starts the daemon on a port of its choice. It runs until stop or the end of the test.
func (d *daemon) serve(args ...string) (url string, stop func()) {
	d.t.Helper()
	// The test's context ends before its cleanups: the daemon is asked by stop, not by it.
	cmd := exec.Command(d.spore, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = d.env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	told, over := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(over)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			d.t.Log(lines.Text())
			if _, at, ok := strings.Cut(lines.Text(), "serving "); ok {
				told <- at
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			d.t.Errorf("asking the daemon to end: %v", err)
		}
		<-over
		if err := cmd.Wait(); err != nil {
			d.t.Errorf("the daemon: %v", err)
		}
	})
	d.t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(d.t.Context(), 3*time.Minute)
	defer cancel()
	select {
	case url = <-told:
	case <-over:
		d.t.Fatal("the daemon ended before it served")
	case <-ctx.Done():
		d.t.Fatal("the daemon serves nothing")
	}
	return url, stop
}
