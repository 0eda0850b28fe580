package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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

// cmdFreeAddress keeps a loopback address that nobody listens on in an environment variable: freeaddress NAME
//
// It is none of those that the kernel gives to whoever connects: all the other scripts' connections take such addresses at the same time.
func cmdFreeAddress(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeaddress NAME")
	}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	ts.Check(err)
	var first int
	_, err = fmt.Sscan(string(text), &first)
	ts.Check(err)
	const lowest = 10_000
	if first <= lowest {
		ts.Fatalf("the kernel gives ports from %d on to whoever connects", first)
	}
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+rand.IntN(first-lowest)))
		if err != nil {
			continue
		}
		ts.Setenv(args[0], l.Addr().String())
		ts.Check(l.Close())
		return
	}
	ts.Fatalf("no port is free")
}

// cmdDashboard checks that a daemon has every metric that the dashboard in dist shows: dashboard ADDRESS
func cmdDashboard(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dashboard ADDRESS")
	}
	text, err := os.ReadFile("../../dist/grafana.json")
	ts.Check(err)
	res, err := http.Get("http://" + args[0] + "/metrics")
	ts.Check(err)
	defer res.Body.Close()
	metrics, err := io.ReadAll(res.Body)
	ts.Check(err)
	shown := regexp.MustCompile(`\b(spore|process|go)_[a-z_]+\b`).FindAllString(string(text), -1)
	if len(shown) < 10 {
		ts.Fatalf("the dashboard shows %v only", shown)
	}
	for _, name := range shown {
		if !strings.Contains(string(metrics), "\n"+name) {
			ts.Fatalf("the daemon has no metric %s", name)
		}
	}
}
