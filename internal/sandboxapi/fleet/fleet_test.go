package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// lab is made for the first test that needs machines.
var lab = struct {
	sync.Once
	*sandboxtest.Lab
	err error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if lab.Lab != nil {
		lab.Close()
	}
	os.Exit(code)
}

// daemon is a fleet that can be stopped and started again.
type daemon struct {
	t     *testing.T
	state string
	run   string
	host  *sandbox.Host
	*fleet.Fleet
}

func newDaemon(t *testing.T, change func(*fleet.Options)) *daemon {
	t.Helper()
	lab.Do(func() { lab.Lab, lab.err = sandboxtest.New(t.Context()) })
	if lab.err != nil {
		t.Fatalf("preparing the tests: %v", lab.err)
	}
	run, err := os.MkdirTemp("", "spore-run") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, state: t.TempDir(), run: run}
	t.Cleanup(func() {
		if left, _ := os.ReadDir(run); len(left) > 0 {
			t.Errorf("left in the run folder: %v", left)
		}
		os.RemoveAll(run)
	})
	d.start(change)
	t.Cleanup(func() {
		if err := d.Close(context.Background(), fleet.Kill); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return d
}

func (d *daemon) start(change func(*fleet.Options)) {
	d.t.Helper()
	log := slog.New(slog.NewTextHandler(d.t.Output(), nil))
	host, err := lab.Host(d.run, log)
	if err != nil {
		d.t.Fatal(err)
	}
	o := fleet.Options{Host: host, StateDir: d.state, Log: log}
	if change != nil {
		change(&o)
	}
	d.host = host
	if d.Fleet, err = fleet.Open(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) create(spec fleet.CreateSpec) fleet.Info {
	d.t.Helper()
	if spec.Template == "" {
		spec.Template = sandboxtest.Name
	}
	i, err := d.Create(d.t.Context(), spec)
	if err != nil {
		d.t.Fatal(err)
	}
	return i
}

// sh runs a line in a sandbox and returns what it prints.
func (d *daemon) sh(id, line string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	client, err := d.Agent(ctx, id)
	if err != nil {
		d.t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := client.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil {
		d.t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || !status.Success() {
		d.t.Fatalf("%s: %v, %v: %s", line, status, err, &out)
	}
	return strings.TrimSpace(out.String())
}

func want(t *testing.T, err error, kind fleet.Kind) {
	t.Helper()
	if err == nil || fleet.KindOf(err) != kind {
		t.Errorf("got error %v (kind %d), want kind %d", err, fleet.KindOf(err), kind)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so within a minute: %s", what)
		}
	}
}

// TestLife takes a sandbox through all that it can be: running, paused, woken, captured, and gone.
func TestLife(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{Owner: "me", Metadata: map[string]string{"a": "1"}, Env: map[string]string{"GREETING": "hello"}})
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
			if err != nil || got.ID != i.ID || got.State != fleet.Running || got.Token != i.Token {
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

func (d *daemon) forks() int {
	d.t.Helper()
	tpl, err := d.Template(d.t.Context(), sandboxtest.Name)
	if err != nil {
		d.t.Fatal(err)
	}
	return tpl.Forks
}

// isBare checks that no sandbox has left anything in the store.
func (d *daemon) isBare() {
	d.t.Helper()
	folders, err := filepath.Glob(filepath.Join(lab.Dir, "store", "*-*"))
	if err != nil || len(folders) != 2 { // the image's disk, and the template
		d.t.Errorf("in the store are %v, %v", folders, err)
	}
	names, err := filepath.Glob(filepath.Join(lab.Dir, "store", ".names", "*"))
	if err != nil || len(names) != 1 {
		d.t.Errorf("names in the store are %v, %v", names, err)
	}
}

// TestForks forks a running sandbox: all go on from where it was, each as somebody else, and it goes on itself.
func TestForks(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{Metadata: map[string]string{"kind": "parent"}})
	d.sh(i.ID, "echo before > /run-file; sleep 1000 & echo $! > /pid")
	forks, report, err := d.Fork(t.Context(), i.ID, 4, time.Minute, "me")
	if err != nil || len(forks) != 4 || report.Stopped <= 0 {
		t.Fatal(forks, report, err)
	}
	who := map[string]bool{d.sh(i.ID, "cat /etc/machine-id; cat /proc/sys/kernel/random/uuid"): true}
	for _, k := range forks {
		if k.Err != nil {
			t.Fatal(k.Err)
		}
		if k.Info.Parent != i.ID || k.Info.Owner != "me" || k.Info.Metadata["kind"] != "parent" || k.Info.Template != report.Snapshot {
			t.Errorf("a fork is %+v", k.Info)
		}
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

// TestTimeUp lets the time of sandboxes end, and gives others more.
func TestTimeUp(t *testing.T) {
	d := newDaemon(t, nil)
	killed := d.create(fleet.CreateSpec{Timeout: time.Second})
	slept := d.create(fleet.CreateSpec{Timeout: time.Second, OnTimeout: fleet.Pause, AutoResume: true})
	longer := d.create(fleet.CreateSpec{Timeout: time.Second, OnTimeout: fleet.Pause})
	if err := d.SetTimeout(t.Context(), longer.ID, time.Hour); err != nil && fleet.KindOf(err) != fleet.Conflict {
		t.Fatal(err)
	}
	eventually(t, "one is gone and one sleeps", func() bool {
		_, err := d.Get(t.Context(), killed.ID)
		i, err2 := d.Get(t.Context(), slept.ID)
		return fleet.KindOf(err) == fleet.Gone && err != nil && err2 == nil && i.State == fleet.Paused
	})
	// A request wakes the one that is to be woken by it.
	if got := d.sh(slept.ID, "cat /etc/machine-id"); got != slept.ID {
		t.Errorf("woken by a request, it says %q", got)
	}
	want(t, d.SetTimeout(t.Context(), slept.ID, 1000*time.Hour), fleet.Invalid)
	// It then has at least the default; another one has as long as it was made for.
	hours := d.create(fleet.CreateSpec{Timeout: 3 * time.Hour, OnTimeout: fleet.Pause, AutoResume: true})
	if _, err := d.Pause(t.Context(), hours.ID); err != nil {
		t.Fatal(err)
	}
	d.sh(hours.ID, "true")
	for id, least := range map[string]time.Duration{slept.ID: 2 * time.Minute, hours.ID: 2 * time.Hour} {
		if i, err := d.Get(t.Context(), id); err != nil || i.State != fleet.Running || i.End.Sub(i.Started) < least {
			t.Errorf("woken by a request: %+v, %v; want %v at least", i, err, least)
		}
	}
	// No time at all is the end of it, whatever that is.
	if err := d.SetTimeout(t.Context(), slept.ID, 0); err != nil {
		t.Error(err)
	}
	eventually(t, "it sleeps again", func() bool { i, err := d.Get(t.Context(), slept.ID); return err == nil && i.State == fleet.Paused })
	for _, i := range []fleet.Info{slept, longer, hours} {
		if err := d.Kill(t.Context(), i.ID); err != nil {
			t.Error(err)
		}
	}
	d.isBare()
}

// TestDeath kills a machine under its sandbox.
func TestDeath(t *testing.T) {
	var said journal
	d := newDaemon(t, func(o *fleet.Options) { o.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	i := d.create(fleet.CreateSpec{})
	client, err := d.Agent(t.Context(), i.ID)
	if err != nil {
		t.Fatal(err)
	}
	// The guest ends itself: process 1 is the agent, and a kernel without it panics.
	client.Start(t.Context(), guest.Command{Args: []string{"/bin/sh", "-c", "echo hunter2 > /dev/console; echo c > /proc/sysrq-trigger || reboot -f"}, User: "root"})
	eventually(t, "it is gone", func() bool { _, err := d.Get(t.Context(), i.ID); return err != nil })
	// What it printed is for its owner, and not for who reads the daemon's log.
	kept := func() string {
		entries, err := d.Logs(t.Context(), i.ID, time.Time{}, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(entries)
	}
	eventually(t, "its console is kept", func() bool { return strings.Contains(kept(), "hunter2") })
	if i, err := d.Get(t.Context(), i.ID); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "has died") {
		t.Errorf("of its end others are told: %+v, %v", i, err)
	}
	if text := said.String(); !strings.Contains(text, i.ID) || strings.Contains(text, "hunter2") {
		t.Errorf("the daemon's log: %s", text)
	}
	_, err = d.Agent(t.Context(), i.ID)
	want(t, err, fleet.Gone)
	d.isBare()
}

// journal keeps what is logged.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// TestRestart ends the daemon orderly and finds the sandboxes again.
func TestRestart(t *testing.T) {
	d := newDaemon(t, nil)
	a, b := d.create(fleet.CreateSpec{}), d.create(fleet.CreateSpec{Metadata: map[string]string{"b": "b"}})
	d.sh(a.ID, "echo a > /who")
	if err := d.Close(t.Context(), fleet.Pause); err != nil {
		t.Fatal(err)
	}
	d.start(nil)
	page, err := d.List(t.Context(), fleet.Filter{})
	if err != nil || len(page.Sandboxes) != 2 || page.Running != 0 {
		t.Fatalf("after the restart: %+v, %v", page, err)
	}
	if i, err := d.Get(t.Context(), b.ID); err != nil || i.State != fleet.Paused || i.Metadata["b"] != "b" || i.Token != b.Token || i.Token == "" {
		t.Errorf("after the restart: %+v, %v", i, err)
	}
	if _, _, err := d.Connect(t.Context(), a.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.sh(a.ID, "cat /who"); got != "a" {
		t.Errorf("it says %q", got)
	}
	for _, id := range []string{a.ID, b.ID} {
		if err := d.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	d.isBare()
}

// TestQuota refuses what is too much for a key.
func TestQuota(t *testing.T) {
	d := newDaemon(t, func(o *fleet.Options) { o.MaxRunning, o.MaxPaused = 1, 1 })
	i := d.create(fleet.CreateSpec{Owner: "a"})
	_, err := d.Create(t.Context(), fleet.CreateSpec{Template: sandboxtest.Name, Owner: "a"})
	want(t, err, fleet.Quota)
	var e *fleet.Error
	if !errors.As(err, &e) || e.Retry <= 0 || e.Hint == "" {
		t.Errorf("refused with %+v", e)
	}
	other := d.create(fleet.CreateSpec{Owner: "b"})
	if _, err := d.Pause(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	second := d.create(fleet.CreateSpec{Owner: "a"}) // there is room for it now
	_, err = d.Pause(t.Context(), second.ID)
	want(t, err, fleet.Quota)
	_, _, err = d.Connect(t.Context(), i.ID, 0)
	want(t, err, fleet.Quota)
	for _, id := range []string{i.ID, other.ID, second.ID} {
		if err := d.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	full := newDaemon(t, func(o *fleet.Options) { o.ReserveMemory = 1 << 50 })
	_, err = full.Create(t.Context(), fleet.CreateSpec{Template: sandboxtest.Name})
	want(t, err, fleet.Busy)
	d.isBare()
}

// TestPool takes sandboxes that wait.
func TestPool(t *testing.T) {
	d := newDaemon(t, func(o *fleet.Options) { o.Pools = map[string]fleet.PoolSpec{sandboxtest.Name: {Size: 2}} })
	if err := d.WaitPools(t.Context()); err != nil {
		t.Fatal(err)
	}
	i := d.create(fleet.CreateSpec{Env: map[string]string{"A": "b"}})
	if got := d.sh(i.ID, "echo $A; cat /etc/machine-id"); !i.Pooled || got != "b\n"+i.ID {
		t.Errorf("from a pool: %+v, which says %q", i, got)
	}
	// It is a sandbox as others: it can sleep and wake.
	if _, err := d.Pause(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.sh(i.ID, "echo $A"); got != "b" {
		t.Errorf("after its sleep it says %q", got)
	}
	tpl, err := d.Template(t.Context(), sandboxtest.Name)
	if err != nil || tpl.PoolSize != 2 || tpl.Forks != 1 || tpl.Spawned == 0 {
		t.Errorf("the template: %+v, %v", tpl, err)
	}
	want(t, d.DeleteTemplate(t.Context(), sandboxtest.Name), fleet.Conflict)
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Error(err)
	}
	// What may reach nothing anyway can be told so, but not that it may reach something.
	offline := d.create(fleet.CreateSpec{Reach: fleet.Reach{Offline: true}})
	_, err = d.Create(t.Context(), fleet.CreateSpec{Template: sandboxtest.Name, Reach: fleet.Reach{Allow: []string{"192.0.2.7"}}})
	want(t, err, fleet.Invalid)
	_, err = d.Create(t.Context(), fleet.CreateSpec{Template: sandboxtest.Name, Reach: fleet.Reach{Deny: []string{"not an address"}}})
	want(t, err, fleet.Invalid)
	if err := d.Kill(t.Context(), offline.ID); err != nil {
		t.Error(err)
	}
	_, err = d.Create(t.Context(), fleet.CreateSpec{Template: "nobody"})
	want(t, err, fleet.NotFound)
	_, err = d.Create(t.Context(), fleet.CreateSpec{Template: uuid.NewString()})
	want(t, err, fleet.NotFound)
}

// TestOneDaemon keeps a second daemon from the same state.
func TestOneDaemon(t *testing.T) {
	d := newDaemon(t, nil)
	host, err := lab.Host(d.run, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fleet.Open(t.Context(), fleet.Options{Host: host, StateDir: d.state}); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second daemon: %v", err)
	}
}
