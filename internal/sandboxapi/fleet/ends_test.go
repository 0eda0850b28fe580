package fleet_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

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
	a, b := d.create(fleet.CreateSpec{}), d.create(fleet.CreateSpec{Private: true, Metadata: map[string]string{"b": "b"}})
	d.sh(a.ID, "echo a > /who")
	if err := d.Close(t.Context(), fleet.Pause); err != nil {
		t.Fatal(err)
	}
	d.start(nil)
	page, err := d.List(t.Context(), fleet.Filter{})
	if err != nil || len(page.Sandboxes) != 2 || page.Running != 0 {
		t.Fatalf("after the restart: %+v, %v", page, err)
	}
	if i, err := d.Get(t.Context(), b.ID); err != nil || i.State != fleet.Paused || i.Metadata["b"] != "b" || i.Token != b.Token || i.Token == "" || !i.Private || i.Traffic != b.Traffic || i.Traffic == "" {
		t.Errorf("after the restart: %+v, %v", i, err)
	}
	if i, _, err := d.Connect(t.Context(), a.ID, 0); err != nil || i.Private || i.Traffic != "" {
		t.Fatalf("%+v, %v", i, err)
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
