package e2e

import (
	"net"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// cmdServed waits until a daemon listens: served
func cmdServed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: served")
	}
	socket := filepath.Join(ts.Getenv("SANDBOX_DIR"), "daemon.sock")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no daemon listens after %v: %v", patience, err)
		}
	}
}

// cmdNoMachine waits until no machine of this script runs, even though nobody may have cleaned up after it: nomachine
func cmdNoMachine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: nomachine")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := 0
		for _, pid := range machines(ts) {
			if unix.Kill(pid, 0) == nil {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%d machines still run", left)
		}
	}
}
