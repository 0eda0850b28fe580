package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// recipe has steps of every kind. The random number tells whether a step was run again.
func recipe(source string) CreateSpec {
	spec := small()
	spec.Steps = []Step{
		{StepEnv, []string{"FRUIT", "apple"}},
		{StepRun, []string{`set -e; echo alice:x:1500:1500::/:/bin/sh >> /etc/passwd; mkdir -p /srv/in; chown alice /srv/in; head -c 16 /dev/urandom | hexdump > /random; echo $FRUIT > /fruit`}},
		{StepWorkdir, []string{"/srv"}},
		{StepWorkdir, []string{"in"}},
		{StepCopy, []string{source, "copied"}},
		{StepUser, []string{"alice"}},
		{StepRun, []string{"id -un > who; pwd > where; cp copied/data seen"}},
	}
	return spec
}

// TestSteps carries out a recipe in two hosts at once, again, with another file, and with a step that fails.
func TestSteps(t *testing.T) {
	first := fresh(t, nil)
	second := newBench(t, first.store, lab.cache(), nil)
	source := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(source, "data"), []byte(text), 0o754); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	if err := os.Symlink("data", filepath.Join(source, "link")); err != nil {
		t.Fatal(err)
	}
	ids := make([]uuid.UUID, 2)
	var both sync.WaitGroup
	for i, b := range []bench{first, second} {
		both.Go(func() {
			snap, err := b.Create(t.Context(), recipe(source), NoProgress{})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = snap.ID()
			snap.Close()
		})
	}
	both.Wait()
	if t.Failed() {
		t.FailNow()
	}
	random := first.hasSteps(t, ids[0], "one")
	if other := first.hasSteps(t, ids[1], "one"); other != random {
		t.Errorf("two hosts at once ran one step twice: %s and %s", random, other)
	}
	if n := len(first.ids(t)); n != 1+3+2 {
		t.Errorf("the store has %d snapshots, want an image, three steps and two machines", n)
	}
	first.isClean(t)

	t.Run("again", func(t *testing.T) {
		phases := new(phaseLog)
		snap, err := first.Create(t.Context(), recipe(source), phases)
		if err != nil {
			t.Fatal(err)
		}
		snap.Close()
		if now := first.hasSteps(t, snap.ID(), "one"); now != random {
			t.Error("a step that is known was run again")
		}
		if n := phases.count("boot"); n != 1 {
			t.Errorf("%d machines were booted, want the one that is frozen", n)
		}
	})
	t.Run("another file", func(t *testing.T) {
		write("two")
		if now := first.hasSteps(t, first.create(t, recipe(source)), "two"); now != random {
			t.Error("a step before the copied file was run again")
		}
	})
	t.Run("a step fails", func(t *testing.T) {
		spec := recipe(source)
		spec.Steps = append(spec.Steps, Step{StepRun, []string{"echo so far; echo no further >&2; exit 9"}})
		before := fmt.Sprint(first.ids(t))
		_, err := first.Create(t.Context(), spec, NoProgress{})
		var failed *StepError
		if !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if failed.Number != 8 || failed.Status.Code != 9 || !printed(failed.Output, "so far", "no further") || failed.Step.Kind != StepRun {
			t.Errorf("%+v", failed)
		}
		if msg := err.Error(); !strings.Contains(msg, "step 8") || !strings.Contains(msg, "exit status 9") || !strings.Contains(msg, "no further") {
			t.Errorf("the message lacks what happened: %s", msg)
		}
		if after := fmt.Sprint(first.ids(t)); after != before {
			t.Errorf("the store has %v, it had %v", after, before)
		}
		first.isClean(t)
	})
	t.Run("from a machine's disk", func(t *testing.T) {
		spec := small()
		spec.Image, spec.From = "", ids[0].String()
		spec.Steps = []Step{{StepRun, []string{"cat who > again"}}}
		id := first.create(t, spec)
		if now := first.hasSteps(t, id, "one"); now != random {
			t.Error("the disk is not the one that was named")
		}
		s := first.resume(t, id)
		if got := output(t, s, "cat again"); got != "alice" {
			t.Errorf("the step after sees %q", got)
		}
	})
}

// hasSteps checks a machine made by the recipe, and returns its random number.
func (b bench) hasSteps(t *testing.T, id uuid.UUID, data string) string {
	t.Helper()
	s := b.resume(t, id)
	defer s.Close()
	want := "apple\nalice\n/srv/in\n" + data + "\ndata\n754 0\n/srv/in alice apple"
	got := output(t, s, `cat /fruit who where; cat seen; echo; readlink copied/link; stat -c '%a %u' copied/data; echo $PWD $(id -un) $FRUIT`)
	if got != want {
		t.Errorf("the machine has %q, want %q", got, want)
	}
	m := b.open(t, id).Metadata()
	if m.Context.Workdir != "/srv/in" || m.Context.User != "alice" || m.Context.Env["FRUIT"] != "apple" || len(m.Steps) < 7 || m.Kind != snapshot.KindMachine {
		t.Errorf("metadata: %+v", m)
	}
	return output(t, s, "cat /random")
}

// phaseLog remembers the phases that it is told.
type phaseLog struct {
	mu     sync.Mutex
	phases []string
}

func (l *phaseLog) Phase(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phases = append(l.phases, name)
}

func (l *phaseLog) Advance(int64, int64) {}

func (l *phaseLog) count(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.phases {
		if p == name {
			n++
		}
	}
	return n
}

// TestLinks changes every input of a step's hash.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	change := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	change("x", 0o644)
	seen := map[uuid.UUID]string{}
	link := func(name string, before uuid.UUID, meta snapshot.Metadata, step Step) {
		t.Helper()
		id, err := nextLink(before, meta, step)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := nextLink(before, meta, step); again != id {
			t.Errorf("%s: one input gives two ids", name)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%s has the id of %s", name, other)
		}
		seen[id] = name
	}
	var meta snapshot.Metadata
	one, two := uuid.New(), uuid.New()
	run, copied := Step{StepRun, []string{"a b"}}, Step{StepCopy, []string{dir, "/to"}}
	link("a step", one, meta, run)
	link("a step on another disk", two, meta, run)
	link("another command", one, meta, Step{StepRun, []string{"a  b"}})
	link("a copy", one, meta, copied)
	link("a copy elsewhere", one, meta, Step{StepCopy, []string{dir, "/elsewhere"}})
	change("y", 0o644)
	link("a copy of other content", one, meta, copied)
	change("x", 0o755)
	link("a copy of another mode", one, meta, copied)
	change("x", 0o644)
	if err := os.Rename(file, file+"2"); err != nil {
		t.Fatal(err)
	}
	link("a copy of another name", one, meta, copied)
	if err := os.Symlink("a", file); err != nil {
		t.Fatal(err)
	}
	link("a copy with a link", one, meta, copied)
	if err := errors.Join(os.Remove(file), os.Symlink("b", file)); err != nil {
		t.Fatal(err)
	}
	link("a copy with a link to elsewhere", one, meta, copied)
	meta.Context.User = "u"
	link("another user", one, meta, run)
	meta.Context.Workdir = "/w"
	link("another folder", one, meta, run)
	meta.Context.Env = map[string]string{"A": "1", "B": "2"}
	link("an environment", one, meta, run)
	meta.Context.Env = map[string]string{"A": "1 B:2"}
	link("another environment", one, meta, run)
}
