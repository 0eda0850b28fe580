package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// TestOutOfMemory has a process take all memory of the guest. It is ended and told apart; the rest of the guest goes on.
func TestOutOfMemory(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	n := count(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	status, err := s.Run(ctx, s.Command([]string{"/bin/sh", "-c", "tail /dev/zero"}))
	if err != nil || !status.OOM && status.ShellCode() != 137 {
		t.Fatalf("%+v, %v", status, err)
	}
	if status, err = s.Run(ctx, s.Command([]string{"tail", "/dev/zero"})); err != nil || !status.OOM || !strings.Contains(status.String(), "out of memory") {
		t.Errorf("%+v (%v), %v", status, status, err)
	}
	if err := s.Agent().Health(ctx); err != nil {
		t.Errorf("the agent: %v", err)
	}
	n = counts(t, s, n)
	w := b.resume(t, pause(t, s, PauseSpec{}))
	counts(t, w, n)
}

// TestKilledWhileUsed kills the VMM during a command. The error has the end of its log.
func TestKilledWhileUsed(t *testing.T) {
	b := shared(t, nil)
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		output(t, s, "echo its last words > /dev/ttyS0")
		eventually(t, "the words are out", func() bool { return strings.Contains(s.Log(), "its last words") })
		failed := make(chan error, 1)
		go func() {
			_, err := try(t.Context(), s, "echo begun > /run/begun; sleep 1000")
			failed <- err
		}()
		eventually(t, "the command runs", func() bool {
			_, err := s.Agent().Stat(t.Context(), "/run/begun")
			return err == nil
		})
		if err := unix.Kill(s.VMM(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"the command": <-failed, "the sandbox": isOver(t, s)} {
			if !errors.Is(err, vmm.ErrDead) || !strings.Contains(err.Error(), "its last words") || !strings.Contains(err.Error(), "killed") {
				t.Errorf("%s has the error %v", what, err)
			}
		}
		for what, err := range map[string]error{"another command": errOf(try(t.Context(), s, "true")), "a pause": pauseError(t, s)} {
			if !errors.Is(err, vmm.ErrDead) {
				t.Errorf("%s has the error %v", what, err)
			}
		}
		if err := errors.Join(s.Close(), s.Close(), snap.Close()); err != nil {
			t.Error(err)
		}
	})
}

func errOf(_ string, err error) error { return err }

func pauseError(t *testing.T, s *Sandbox) error {
	_, _, err := s.Pause(t.Context(), PauseSpec{}, NoProgress{})
	return err
}

// TestKilledInPause kills the VMM before each thing that a pause asks of it. Nothing is published, least of all a machine without what it had written.
func TestKilledInPause(t *testing.T) {
	lab.need(t)
	for _, op := range []string{"stop", "state", "dirty", "dirty found", "read", "continue", "dial"} {
		armed := false
		b := shared(t, rig(func(now string, m vmm.Machine) error {
			if !armed || now != op {
				return nil
			}
			if err := unix.Kill(m.PID(), unix.SIGKILL); err != nil || op != "dirty found" {
				return err
			}
			<-m.Done()
			return errNothing
		}))
		before := fmt.Sprint(b.ids(t))
		s := b.resume(t, lab.template)
		output(t, s, "echo precious > /run/precious")
		armed = true
		_, _, err := s.Pause(t.Context(), PauseSpec{KeepRunning: op == "continue" || op == "dial"}, NoProgress{})
		if !errors.Is(err, vmm.ErrDead) || !strings.Contains(err.Error(), "killed") {
			t.Errorf("killed before %q: %v", op, err)
		}
		if err := isOver(t, s); !errors.Is(err, vmm.ErrDead) {
			t.Errorf("killed before %q: the sandbox has the error %v", op, err)
		}
		if after := fmt.Sprint(b.ids(t)); after != before {
			t.Errorf("killed before %q: the store has %s, it had %s", op, after, before)
		}
		s.Close()
		b.isClean(t)
	}
}

// TestPauseOperationFails has each thing that a pause asks of the VMM fail while it lives: it goes on.
func TestPauseOperationFails(t *testing.T) {
	lab.need(t)
	refused := errors.New("refused")
	op := ""
	b := shared(t, rig(func(now string, _ vmm.Machine) error {
		if now == op {
			return refused
		}
		return nil
	}))
	before := fmt.Sprint(b.ids(t))
	s := b.resume(t, lab.template)
	n := count(t, s)
	for _, failing := range []string{"stop", "state", "dirty", "read"} {
		op = failing
		_, _, err := s.Pause(t.Context(), PauseSpec{}, NoProgress{})
		op = ""
		if !errors.Is(err, refused) {
			t.Errorf("%s refused: %v", failing, err)
		}
		n = counts(t, s, n)
	}
	if after := fmt.Sprint(b.ids(t)); after != before {
		t.Errorf("the store has %s, it had %s", after, before)
	}
	// A machine that can't be let go on is ended: it would hold whoever waits for it.
	op = "continue"
	if _, _, err := s.Pause(t.Context(), PauseSpec{KeepRunning: true}, NoProgress{}); !errors.Is(err, refused) {
		t.Errorf("going on refused: %v", err)
	}
	if err := isOver(t, s); !errors.Is(err, refused) {
		t.Errorf("the sandbox has the error %v", err)
	}
}

// TestKilledWhileCreating kills the VMM while its readiness is waited for.
func TestKilledWhileCreating(t *testing.T) {
	lab.need(t)
	var machine vmm.Machine
	b := fresh(t, rig(func(_ string, m vmm.Machine) error { machine = m; return nil }))
	spec := small()
	spec.StartCommand, spec.ReadyCommand = "sleep 1000", "sleep 1000"
	b.leavesNothing(t, func() {
		_, err := b.Create(t.Context(), spec, at{"ready", func() {
			time.AfterFunc(200*time.Millisecond, func() { unix.Kill(machine.PID(), unix.SIGKILL) })
		}})
		if !errors.Is(err, vmm.ErrDead) {
			t.Errorf("error is %v", err)
		}
	})
	b.hasOnlyDisks(t)
}

// at calls a function when a phase begins.
type at struct {
	phase string
	do    func()
}

func (a at) Phase(name string) {
	if name == a.phase {
		a.do()
	}
}

func (a at) Advance(int64, int64) {}

// TestWrongIdentity has a VMM die between running and being somebody.
func TestWrongIdentity(t *testing.T) {
	b := shared(t, killBefore(t, "dial"))
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		_, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if !errors.Is(err, vmm.ErrDead) || !strings.Contains(err.Error(), lab.template.String()) {
			t.Errorf("error is %v", err)
		}
		snap.Close()
	})
}

// TestMayBeDeath tells answers, which only the living give, from what a death looks like.
func TestMayBeDeath(t *testing.T) {
	missing := &guest.Error{Status: http.StatusNotFound}
	if !errors.Is(missing, fs.ErrNotExist) {
		t.Fatal("a file that is missing in the guest is none that is missing")
	}
	for err, want := range map[error]bool{
		guest.ErrClosed: true, unix.ECONNRESET: true, fs.ErrNotExist: true, &fs.PathError{Op: "open", Path: "/proc/1/mem", Err: unix.EPERM}: true,
		missing: false, errors.New("another"): false,
	} {
		if got := mayBeDeath(fmt.Errorf("doing something: %w", err)); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
