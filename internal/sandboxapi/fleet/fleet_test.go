package fleet_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// TestLife takes a sandbox through all that it can be: running, paused, woken, captured, and gone.
func TestLife(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{Owner: "me", Private: true, Metadata: map[string]string{"a": "1"}, Env: map[string]string{"GREETING": "hello"}})
	if i.State != fleet.Running || len(i.ID) != 32 || i.Name != sandboxtest.Name || i.Template != lab.Template || i.Token == "" || i.Wake <= 0 {
		t.Errorf("made %+v", i)
	}
	if got := d.sh(i.ID, "echo $GREETING; echo kept > /disk; cat /etc/machine-id"); got != "hello\n"+i.ID {
		t.Errorf("it says %q", got)
	}
	if n := fmt.Sprint(d.forks()); n != "1" {
		t.Errorf("the template has %s forks", n)
	}
	want(t, d.DeleteTemplate(t.Context(), sandboxtest.Name), fleet.Conflict)

	p, err := d.Pause(t.Context(), i.ID)
	if err != nil || p.State != fleet.Paused {
		t.Fatalf("paused: %+v, %v", p, err)
	}
	_, err = d.Pause(t.Context(), i.ID)
	want(t, err, fleet.Conflict)
	_, err = d.Agent(t.Context(), i.ID)
	want(t, err, fleet.Conflict)
	if n := d.forks(); n != 1 {
		t.Errorf("with one that sleeps the template has %d forks", n)
	}

	// Two wake it at once: one does, and both have the same.
	var wg sync.WaitGroup
	var resumed [2]bool
	for n := range resumed {
		wg.Go(func() {
			got, did, err := d.Connect(t.Context(), i.ID, time.Hour)
			if err != nil || got.ID != i.ID || got.State != fleet.Running || got.Token != i.Token || got.Traffic != i.Traffic || i.Traffic == "" {
				t.Errorf("connected to %+v, %v", got, err)
			}
			resumed[n] = did
		})
	}
	wg.Wait()
	if resumed[0] == resumed[1] {
		t.Errorf("woken by both or by none: %v", resumed)
	}
	if got := d.sh(i.ID, "cat /disk; echo $GREETING; cat /etc/machine-id"); got != "kept\nhello\n"+i.ID {
		t.Errorf("after its sleep it says %q", got)
	}

	id, names, err := d.Snapshot(t.Context(), i.ID, "captured")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	copied := d.create(fleet.CreateSpec{Template: "captured"})
	if got := d.sh(copied.ID, "cat /disk"); got != "kept" || copied.Template != id {
		t.Errorf("made of what was captured: %q, %+v", got, copied)
	}
	if ms, err := d.Metrics(t.Context(), i.ID, time.Time{}, time.Time{}); err != nil || len(ms) != 1 || ms[0].MemUsed <= 0 || ms[0].DiskTotal <= 0 || ms[0].CPUs != 1 {
		t.Errorf("measured %+v, %v", ms, err)
	}

	for _, id := range []string{copied.ID, i.ID} {
		if err := d.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	_, err = d.Get(t.Context(), i.ID)
	want(t, err, fleet.Gone)
	want(t, d.Kill(t.Context(), i.ID), fleet.NotFound)
	_, err = d.Get(t.Context(), strings.Repeat("0", 32))
	want(t, err, fleet.NotFound)
	logs, err := d.Logs(t.Context(), i.ID, time.Time{}, 0, true)
	var said []string
	for _, l := range logs {
		said = append(said, l.Message)
	}
	if got := strings.Join(said, ", "); err != nil || got != "created, paused, woken, captured, it was killed" {
		t.Errorf("its log: %s, %v", got, err)
	}
	if err := d.DeleteTemplate(t.Context(), "captured"); err != nil {
		t.Error(err)
	}
	// What it once slept as was needed by what was captured of it later. Nothing leads to it now.
	if garbage, _, err := d.host.Snapshots.GC(t.Context(), 0, true); err != nil || len(garbage) != 1 {
		t.Errorf("garbage: %+v, %v", garbage, err)
	}
	d.isBare()
}

// TestForks forks a running sandbox: all go on from where it was, each as somebody else, and it goes on itself.
func TestForks(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{Private: true, Metadata: map[string]string{"kind": "parent"}})
	d.sh(i.ID, "echo before > /run-file; sleep 1000 & echo $! > /pid")
	forks, report, err := d.Fork(t.Context(), i.ID, 4, time.Hour, "me") // longer than any host takes
	if err != nil || len(forks) != 4 || report.Stopped <= 0 {
		t.Fatal(forks, report, err)
	}
	tokens := map[string]bool{"": true, i.Token: true, i.Traffic: true}
	who := map[string]bool{d.sh(i.ID, "cat /etc/machine-id; cat /proc/sys/kernel/random/uuid"): true}
	for _, k := range forks {
		if k.Err != nil {
			t.Fatal(k.Err)
		}
		if k.Info.Parent != i.ID || k.Info.Owner != "me" || k.Info.Metadata["kind"] != "parent" || k.Info.Template != report.Snapshot {
			t.Errorf("a fork is %+v", k.Info)
		}
		if tokens[k.Info.Traffic] || tokens[k.Info.Token] {
			t.Errorf("a fork has no token of its own: %+v", k.Info)
		}
		tokens[k.Info.Token], tokens[k.Info.Traffic] = true, true
		if got := d.sh(k.Info.ID, "cat /run-file; kill -0 $(cat /pid) && echo runs"); got != "before\nruns" {
			t.Errorf("a fork says %q", got)
		}
		me := d.sh(k.Info.ID, "cat /etc/machine-id; cat /proc/sys/kernel/random/uuid")
		if who[me] {
			t.Errorf("two are the same: %s", me)
		}
		who[me] = true
	}
	if got := d.sh(i.ID, "cat /run-file; kill -0 $(cat /pid) && echo runs"); got != "before\nruns" {
		t.Errorf("after it was forked it says %q", got)
	}
	_, _, err = d.Fork(t.Context(), i.ID, 0, 0, "")
	want(t, err, fleet.Invalid)

	// The forked one ends first: the forks do not need it.
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	for _, k := range forks {
		d.sh(k.Info.ID, "cat /run-file")
		if err := d.Kill(t.Context(), k.Info.ID); err != nil {
			t.Error(err)
		}
	}
	d.isBare()
}
