package sandbox

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/vmm"
)

// clockError is how far a woken guest's clock may be off.
const clockError = 50 * time.Millisecond

// sight is what a process of the guest saw at one moment; see testdata/probe.
type sight struct {
	number int
	host   string
	time   int64
	random string
	torn   bool
}

// wakes returns what the template's process saw around its last change of identity: last as its old self, and first as its new.
func wakes(t *testing.T, s *Sandbox) []sight {
	t.Helper()
	var text string
	eventually(t, "the process has seen its new identity", func() bool {
		text = output(t, s, "cat /wakes 2>/dev/null || true")
		return strings.Contains(text, " "+output(t, s, "hostname")+" ")
	})
	var all []sight
	for line := range strings.Lines(text) {
		var s sight
		if _, err := fmt.Sscan(line, &s.number, &s.host, &s.time, &s.random, &s.torn); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, s)
	}
	return all
}

// TestIdentity wakes one snapshot several times, hands over the identity late, and looks at what a process that ran before the freeze has seen.
func TestIdentity(t *testing.T) {
	lab.need(t)
	const delay = 150 * time.Millisecond
	b := shared(t, rig(func(op string, _ vmm.Machine) error {
		if op == "dial" {
			time.Sleep(delay) // the CPUs run, and nobody has told the guest who it is
		}
		return nil
	}))
	seen := map[string]string{} // what must not come twice → where it came
	unique := func(where, what, value string) {
		t.Helper()
		if value == "" || seen[what+value] != "" {
			t.Errorf("%s: %s %q, as in %q", where, what, value, seen[what+value])
		}
		seen[what+value] = where
	}
	var frozenAt sight
	created := b.open(t, lab.template).Metadata().Created
	for i := range 3 {
		where := fmt.Sprintf("wake %d", i)
		begin := time.Now()
		s := b.resume(t, lab.template)
		confirmed := time.Now()
		clockIsRight(t, s)
		unique(where, "uuid", output(t, s, "cat /proc/sys/kernel/random/uuid"))
		unique(where, "random", output(t, s, "head -c 16 /dev/urandom | hexdump -v -e '/1 \"%02x\"'"))
		unique(where, "hostname", output(t, s, "hostname"))
		unique(where, "machine id", output(t, s, "cat /etc/machine-id"))
		unique(where, "sandbox", s.ID().String())
		if got := output(t, s, "cat /etc/hostname"); got != newHostname(s.ID()) {
			t.Errorf("%s: /etc/hostname says %q", where, got)
		}
		if got := output(t, s, "cat /etc/machine-id"); got != strings.ReplaceAll(s.ID().String(), "-", "") {
			t.Errorf("%s: /etc/machine-id says %q", where, got)
		}
		sights := wakes(t, s)
		old := sights[0]
		if i > 0 && old != frozenAt {
			t.Errorf("%s: a process ran before its identity was confirmed: its last look before was %+v, in another wake %+v", where, old, frozenAt)
		}
		if frozenAt = old; time.Unix(0, old.time).After(created.Add(clockError)) {
			t.Errorf("%s: the old name was seen at %v, after the snapshot of %v", where, time.Unix(0, old.time), created)
		}
		for _, now := range sights[1:] {
			if now.host == "torn" {
				continue // the line before, again
			}
			unique(where, "random numbers of a process", now.random)
			if now.torn {
				continue // began before the freeze, ended after the wake
			}
			if at := time.Unix(0, now.time); now.host != newHostname(s.ID()) || at.Before(begin.Add(-clockError)) || at.After(confirmed.Add(patience)) {
				t.Errorf("%s: woken between %v and %v the process sees %+v", where, begin, confirmed, now)
			}
		}
		s.Close()
	}
}

// clockIsRight compares the guest's clock with the host's. An answer is from some moment between the question and its arrival.
func clockIsRight(t *testing.T, s *Sandbox) {
	t.Helper()
	var least time.Duration
	for try := range 50 {
		before := time.Now()
		stats, err := s.Agent().Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		after, at := time.Now(), time.Unix(0, stats.Time)
		if off := max(before.Sub(at), at.Sub(after)); off > max(clockError, s.Agent().ClockSlack()) {
			t.Errorf("the guest's clock is off by %v at least", off)
			return
		}
		if took := after.Sub(before); try == 0 || took < least {
			least = took
		}
		if least < clockError {
			return // had the clock been off by more than twice that, it had shown
		}
	}
	t.Logf("no answer came within %v (best: %v): the host is too busy to tell more", clockError, least)
}

// TestClock lets a snapshot sleep, and a machine that goes on after its own pause.
func TestClock(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	clockIsRight(t, s)
	pause(t, s, PauseSpec{KeepRunning: true})
	clockIsRight(t, s)
	id := pause(t, s, PauseSpec{})
	time.Sleep(3 * time.Second)
	w := b.resume(t, id)
	clockIsRight(t, w)
	time.Sleep(time.Second)
	clockIsRight(t, w) // it also runs at the right speed
}

// TestNextIdentity looks at what is handed over.
func TestNextIdentity(t *testing.T) {
	s := &Sandbox{id: uuid.New(), epoch: 6}
	s.meta.Net = string(vmm.NetUser)
	s.meta.Context.User = "somebody"
	seen := map[string]bool{}
	for range 100 {
		id, err := s.nextIdentity()
		if err != nil {
			t.Fatal(err)
		}
		if seen[id.Generation] || seen[string(id.Entropy)] {
			t.Fatal("an identity is handed over twice")
		}
		seen[id.Generation], seen[string(id.Entropy)] = true, true
		if len(id.Entropy) < api.MinEntropy || len(id.Entropy) > api.MaxEntropy || id.Epoch != 7 || id.Net == nil || id.Context.User != "somebody" {
			t.Fatalf("%+v", id)
		}
		if off := time.Since(time.Unix(0, id.Time)); off < 0 || off > patience {
			t.Fatalf("its time is %v old", off)
		}
	}
}
