package sandbox

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestBootedMachine has two CPUs and a network, and is used, and paused while it runs, before it was ever a snapshot.
func TestBootedMachine(t *testing.T) {
	b := shared(t, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello, guest") }))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	spec := small()
	spec.CPUs, spec.Net = 2, "user"
	disk, meta, err := b.foundation(t.Context(), spec, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	s, err := b.boot(t.Context(), disk, meta, CreateSpec{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	works := func(s *Sandbox) {
		t.Helper()
		if got := output(t, s, "nproc"); got != "2" {
			t.Errorf("the guest has %s CPUs", got)
		}
		eventually(t, "both CPUs work", func() bool {
			busy := output(t, s, `for i in 1 2; do timeout 1 sh -c 'while :; do :; done' & done; wait; grep '^cpu[01] ' /proc/stat`)
			for line := range strings.Lines(busy) {
				var name string
				var user int
				if _, err := fmt.Sscan(line, &name, &user); err != nil || user < 10 {
					return false
				}
			}
			return strings.Count(busy, "\n") == 1 // the last line has none
		})
		if got := output(t, s, "ip -o -4 addr show | sed -n 's/.*inet \\([^ ]*\\).*/\\1/p' | sort; ip route | grep ^default"); !strings.HasPrefix(got, "10.0.2.15/24\n127.0.0.1/8\ndefault via 10.0.2.2") {
			t.Errorf("the network is %q", got)
		}
		if got := output(t, s, "wget -q -O - http://10.0.2.2:"+port+"/"); got != "hello, guest" {
			t.Errorf("over the network came %q", got)
		}
	}
	works(s)
	clockIsRight(t, s)
	keeps(t, b, s)
	w := b.resume(t, s.Snapshot().ID())
	works(w)
	clockIsRight(t, w)
}

// TestNoNetwork finds nothing but loopback in the lab's machine.
func TestNoNetwork(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	if got := output(t, s, "ls /sys/class/net"); got != "lo" {
		t.Errorf("interfaces: %s", got)
	}
}
