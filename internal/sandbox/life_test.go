package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// TestGenerations freezes and wakes a machine several times: its process and its files go on, and every generation can still be woken afterwards.
func TestGenerations(t *testing.T) {
	b := shared(t, nil)
	id, n := lab.template, 0
	pid := 0
	var all []uuid.UUID
	for i := range 4 {
		s := b.resume(t, id)
		running, err := s.Agent().Processes(t.Context())
		if err != nil || len(running) != 1 || pid != 0 && running[0].PID != pid {
			t.Fatalf("generation %d: running are %v, %v; the process was %d", i, running, err, pid)
		}
		pid = running[0].PID
		n = counts(t, s, n)
		output(t, s, fmt.Sprintf("echo %d >> /disk; echo %d >> /run/memory", i, i))
		id = pause(t, s, PauseSpec{Labels: map[string]string{"generation": fmt.Sprint(i)}})
		all = append(all, id)
		if err := isOver(t, s); err != nil {
			t.Errorf("a paused sandbox has the error %v", err)
		}
		if _, _, err := s.Pause(t.Context(), PauseSpec{}, NoProgress{}); err == nil || !strings.Contains(err.Error(), "wake its snapshot") {
			t.Errorf("pausing what is paused: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	want := ""
	for i, id := range all {
		want = strings.TrimSpace(fmt.Sprintf("%s\n%d", want, i))
		s := b.resume(t, id)
		if got := output(t, s, "cat /disk"); got != want {
			t.Errorf("generation %d: on disk is %q, want %q", i, got, want)
		}
		if got := output(t, s, "cat /run/memory"); got != want {
			t.Errorf("generation %d: in memory is %q, want %q", i, got, want)
		}
		if m := b.open(t, id).Metadata(); m.Labels["generation"] != fmt.Sprint(i) || m.Kind != snapshot.KindMachine || m.Generation != uint32(i)+2 {
			t.Errorf("generation %d: metadata %+v", i, m)
		}
		s.Close()
		b.verify(t, id)
	}
}

// keeps pauses a machine again and again while it runs, and wakes what each pause has made.
func keeps(t *testing.T, b bench, s *Sandbox) {
	t.Helper()
	var all []uuid.UUID
	host := output(t, s, "hostname")
	for i := range 3 {
		output(t, s, fmt.Sprintf("echo %d > /keep; echo %d > /run/keep; echo %d > /keep%d; head -c 300000 /dev/urandom > /noise; md5sum < /noise > /sum", i, i, i, i))
		id := pause(t, s, PauseSpec{KeepRunning: i < 2})
		all = append(all, id)
		if i == 2 {
			break
		}
		if s.Snapshot().ID() != id {
			t.Errorf("pause %d: the sandbox follows %s, not %s", i, s.Snapshot().ID(), id)
		}
		if now := output(t, s, "hostname"); now != host {
			t.Errorf("a machine that goes on is called %s, it was %s", now, host)
		}
		output(t, s, "rm /noise") // what comes after a snapshot does not touch it
	}
	for i, id := range all {
		w := b.resume(t, id)
		want := fmt.Sprintf("%d\n%d", i, i)
		if got := output(t, w, "cat /keep /run/keep"); got != want {
			t.Errorf("pause %d: %q, want %q", i, got, want)
		}
		if got, want := output(t, w, "ls -d /keep[0-9]"), strings.Join([]string{"/keep0", "/keep1", "/keep2"}[:i+1], "\n"); got != want {
			t.Errorf("pause %d: %q, want %q", i, got, want)
		}
		output(t, w, "md5sum < /noise | cmp - /sum")
		output(t, w, "echo 3 > /proc/sys/vm/drop_caches; md5sum < /noise | cmp - /sum")
		w.Close()
		b.verify(t, id)
	}
}

func TestKeepRunning(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	n := count(t, s)
	keeps(t, b, s)
	w := b.resume(t, s.Snapshot().ID())
	counts(t, w, n)
}

// TestForks wakes one snapshot twice at once: neither sees what the other does.
func TestForks(t *testing.T) {
	b := shared(t, nil)
	first, second := b.resume(t, lab.template), b.resume(t, lab.template)
	output(t, first, "echo first > /mine; echo first > /run/mine")
	if got := output(t, second, "cat /mine /run/mine 2>&1 || true"); strings.Contains(got, "first") {
		t.Errorf("a fork sees its sibling's files: %s", got)
	}
	output(t, second, "echo second > /mine")
	if got := output(t, first, "cat /mine"); got != "first" {
		t.Errorf("a fork's file says %q", got)
	}
	counts(t, first, 1)
	counts(t, second, 1)
}

// noNames is a store that can't keep the given name.
type noNames struct {
	store.Store
	name string
}

var errNoNames = errors.New("no more names")

func (s noNames) SetName(ctx context.Context, name string, id uuid.UUID) error {
	if name == s.name {
		return errNoNames
	}
	return s.Store.SetName(ctx, name, id)
}

// TestPauseFails gives a pause every reason to fail that needs no fault of the machine. It goes on each time, and nothing is published.
func TestPauseFails(t *testing.T) {
	lab.need(t)
	dir, err := store.OpenDir(lab.store())
	if err != nil {
		t.Fatal(err)
	}
	h, err := hostOn(noNames{dir, "refused"}, lab.cache(), runFolder(t), nil, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	b := bench{h, lab.store()}
	if err := b.Snapshots.Tag(t.Context(), "taken", lab.template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Snapshots.Untag(context.Background(), "taken") })
	s := b.resume(t, lab.template)
	before := b.ids(t)
	n := count(t, s)
	for _, c := range []struct {
		name string
		spec PauseSpec
		want error
	}{
		{"the id is taken", PauseSpec{ID: lab.template}, store.ErrExist},
		{"no name", PauseSpec{Names: []string{"../up"}}, store.ErrBadName},
		{"the second name can't be kept", PauseSpec{Names: []string{"taken", "new", "refused"}}, errNoNames},
		{"the name can't be kept, going on", PauseSpec{Names: []string{"new", "refused"}, KeepRunning: true}, errNoNames},
	} {
		if _, _, err := s.Pause(t.Context(), c.spec, NoProgress{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		n = counts(t, s, n)
		if got := output(t, s, "echo written > /here; cat /here"); got != "written" {
			t.Errorf("%s: the disk says %q", c.name, got)
		}
		if after := b.ids(t); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: the store has %v, it had %v", c.name, after, before)
		}
		names, err := b.Snapshots.Names(t.Context())
		if err != nil || names["taken"] != lab.template || names["new"] != uuid.Nil {
			t.Errorf("%s: names %v, %v", c.name, names, err)
		}
	}
	w := b.resume(t, pause(t, s, PauseSpec{})) // what failed before does not harm what follows
	counts(t, w, n)
	output(t, w, "grep written /here")
}
