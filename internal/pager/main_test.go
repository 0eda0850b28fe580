package pager

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/pager/pagertest"
)

// roleEnv makes the test binary another process.
const roleEnv = "SPORE_PAGER_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleEnv); role {
	case "":
		os.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0") // of the other processes, whose end the tests notice
		os.Exit(m.Run())
	case "pager":
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		err = Serve(ctx, os.Stdin, os.Stdout, openTestImage, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case "client":
		err = pagertest.Main(os.Stdin, os.Stdout)
	case "daemon":
		err = daemon()
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(roleEnv), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// daemonOrder is what a daemon process is told to do before it is killed.
type daemonOrder struct {
	StateDir, TempDir string
	Template          string
	Forks             []string
}

// daemon is a process that runs a Tracker, in the middle of which it is killed.
func daemon() error {
	var o daemonOrder
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&o); err != nil {
		return err
	}
	os.Setenv(roleEnv, "pager")
	tracker, err := NewTracker(Config{Command: []string{"/proc/self/exe"}, StateDir: o.StateDir, TempDir: o.TempDir, OrphanGrace: 50 * time.Millisecond})
	if err != nil {
		return err
	}
	var paths []string
	for _, id := range o.Forks {
		path, err := tracker.Acquire(context.Background(), o.Template, Fork{ID: id, UID: os.Geteuid()})
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	if err := json.NewEncoder(os.Stdout).Encode(paths); err != nil {
		return err
	}
	select {}
}
