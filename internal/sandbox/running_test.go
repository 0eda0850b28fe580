package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/uuid"
)

// TestListRunning finds the machines of a run folder that live, and passes by what others have left there, which stays.
func TestListRunning(t *testing.T) {
	root := t.TempDir()
	vmm := sleep(t)
	machine := func(owner int, ownerStarted uint64) (*workDir, Running) {
		d, err := newRunDir(root)
		r := Running{ID: uuid.New(), Snapshot: uuid.New(), CPUs: 2, Owner: owner, OwnerStarted: ownerStarted}
		if err == nil {
			err = d.record(vmm.Process.Pid, r)
		}
		if err != nil {
			t.Fatal(err)
		}
		return d, r
	}
	alive, want := machine(os.Getpid(), 0)
	dead, _ := machine(os.Getpid(), 0)
	dead.lock.Close() // as the kernel does for a process that is killed
	ended, _ := machine(os.Getpid(), 0)
	if err := os.WriteFile(filepath.Join(ended.path, vmmName), []byte(strconv.Itoa(vmm.Process.Pid)+" 1\n"), 0o600); err != nil { // the number is another's by now
		t.Fatal(err)
	}
	torn, _ := machine(os.Getpid(), 0)
	if err := os.Truncate(filepath.Join(torn.path, aboutName), 10); err != nil {
		t.Fatal(err)
	}
	young, err := newRunDir(root) // has no machine yet
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(root, "file"), nil, 0o600), os.Mkdir(filepath.Join(root, "folder"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds all as the first did
		all, err := ListRunning(root)
		if err != nil || len(all) != 1 || all[0] != want {
			t.Errorf("found %+v, %v, want %+v", all, err, want)
		}
	}
	if left := entries(t, root); len(left) != 7 {
		t.Errorf("left are %v", left)
	}
	for _, d := range []*workDir{alive, ended, torn, young} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
	if all, err := ListRunning(filepath.Join(root, "nowhere")); err != nil || len(all) > 0 {
		t.Errorf("where there is nothing: %v, %v", all, err)
	}
}

// TestFoldersOfOthers leaves alone what another user may have put into a run folder: a record of some process of ours is no reason to end that.
func TestFoldersOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a folder to somebody else takes root")
	}
	root, victim := t.TempDir(), sleep(t)
	for _, held := range []bool{true, false} {
		d, err := newRunDir(root)
		if err == nil {
			err = d.record(victim.Process.Pid, Running{ID: uuid.New(), Owner: victim.Process.Pid})
		}
		if err = errors.Join(err, os.Chown(d.path, 1, 1)); err != nil {
			t.Fatal(err)
		}
		if held {
			defer d.lock.Close()
		} else {
			d.lock.Close()
		}
	}
	if all, err := ListRunning(root); err != nil || len(all) > 0 {
		t.Errorf("listed are %+v, %v", all, err)
	}
	if err := sweep(root, slog.New(slog.DiscardHandler), nil); err != nil {
		t.Error(err)
	}
	if _, err := startTime(victim.Process.Pid); err != nil {
		t.Errorf("the process was ended: %v", err)
	}
	if left := entries(t, root); len(left) != 2 {
		t.Errorf("left are %v", left)
	}
}

// TestEndRunning ends the process that a machine belongs to, and never one that has its number by chance.
func TestEndRunning(t *testing.T) {
	owner, other := sleep(t), sleep(t)
	started, err := startTime(owner.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	stranger := Running{Owner: other.Process.Pid, OwnerStarted: 1}
	if err := stranger.End(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := startTime(other.Process.Pid); err != nil {
		t.Error("another process was ended")
	}
	done := make(chan error, 1)
	go func() { done <- owner.Wait() }()
	r := Running{Owner: owner.Process.Pid, OwnerStarted: started}
	if err := r.End(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil || err.Error() != "signal: terminated" {
		t.Errorf("it has ended with %v", err)
	}
	if err := r.End(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
	// One that does not end is waited for only as long as somebody waits.
	deaf := exec.Command("sh", "-c", "trap '' TERM; echo ready; exec sleep 1000")
	out, err := deaf.StdoutPipe()
	if err == nil {
		err = deaf.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deaf.Process.Kill(); deaf.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if started, err = startTime(deaf.Process.Pid); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Running{Owner: deaf.Process.Pid, OwnerStarted: started}).End(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one that does not end: %v", err)
	}
}

// sleep starts a process that does nothing.
func sleep(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}
