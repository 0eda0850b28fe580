package fleet_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

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
