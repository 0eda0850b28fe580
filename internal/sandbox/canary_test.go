package sandbox

import (
	"slices"
	"testing"
)

func TestCanary(t *testing.T) {
	b := shared(t, nil)
	snap := b.open(t, lab.template)
	before, err := b.Snapshots.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	checks, err := b.Canary(t.Context(), snap, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range checks {
		t.Logf("%s: %t, %s", c.Name, c.OK, c.Detail)
		names = append(names, c.Name)
		if !c.OK {
			t.Errorf("not so: %s: %s", c.Name, c.Detail)
		}
	}
	want := []string{
		"memory was restored", "it was not booted", "the clock is right", "frozen again it is the same",
		"random numbers differ", "UUIDs differ", "machine ids differ", "host names differ",
	}
	if !slices.Equal(names, want) {
		t.Errorf("looked at %q", names)
	}
	after, err := b.Snapshots.List(t.Context(), nil)
	if err != nil || len(after) != len(before) {
		t.Errorf("%d snapshots became %d, %v", len(before), len(after), err)
	}
}

// TestCanaryNotices lets a machine wake that is not the one that was planted, as far as the canary knows.
func TestCanaryNotices(t *testing.T) {
	b := shared(t, nil)
	c := &canary{host: b.Host, progress: NoProgress{}}
	planted, err := c.plant(t.Context(), b.open(t, lab.template))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Snapshots.Remove(t.Context(), planted.ID(), true)
	defer planted.Close()
	c.nonce, c.boot = "another", "another"
	if _, err := c.wake(t.Context(), planted, false); err != nil {
		t.Fatal(err)
	}
	for _, check := range c.checks[:2] {
		if check.OK {
			t.Errorf("it did not notice: %s: %s", check.Name, check.Detail)
		}
	}
	if c.add("same", false, "%s", brief("\x00\x01")); c.checks[len(c.checks)-1].Detail != "0001" {
		t.Errorf("%+v", c.checks)
	}
}
