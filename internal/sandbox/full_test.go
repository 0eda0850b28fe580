package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store"
)

// smallDisk mounts an ext4 file system of some MiB. (On tmpfs, a private mapping of a file with holes takes space when it is only read.)
func smallDisk(t *testing.T, mib int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root may mount a small file system")
	}
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, args := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", mib), disk},
		{"mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", disk},
		{"mount", "-o", "loop", disk, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH) // at least leave no mount behind
		}
	})
	return dir
}

// fill leaves no more than some MiB on the disk that dir is on, until it is told to free them.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leave<<20); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

func isFull(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), "free some") {
		t.Errorf("%s: %v", what, err)
	}
}

// TestStoreFull creates a machine where there is room for its disk but not for its memory, and then pauses one where there is no room for what it has written.
func TestStoreFull(t *testing.T) {
	lab.need(t)
	b := newBench(t, filepath.Join(smallDisk(t, 160), "store"), lab.cache(), nil)
	disk := filepath.Dir(b.store)
	free := fill(t, disk, 16)
	b.leavesNothing(t, func() {
		_, err := b.Create(t.Context(), small(), NoProgress{})
		isFull(t, "a creation", err)
	})
	b.hasOnlyDisks(t)
	free()

	spec := small()
	spec.StartCommand, spec.ReadyCommand = "cd /; exec /probe live", "test -s /count"
	s := b.resume(t, b.create(t, spec))
	n := count(t, s)
	output(t, s, "head -c 12000000 /dev/urandom > /large; md5sum < /large > /sum")
	free = fill(t, disk, 4)
	for _, keep := range []bool{false, true} {
		_, _, err := s.Pause(t.Context(), PauseSpec{KeepRunning: keep}, NoProgress{})
		isFull(t, "a pause", err)
		n = counts(t, s, n)
		if left := entries(t, filepath.Join(b.store, ".drafts")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	free()
	id := pause(t, s, PauseSpec{})
	s.Close()
	w := b.resume(t, id)
	counts(t, w, n)
	output(t, w, "md5sum < /large | cmp - /sum")
	b.verify(t, id)
}

// TestCacheFull has no room for the memory of a snapshot, and then none for what the machine writes.
func TestCacheFull(t *testing.T) {
	used := shared(t, nil).open(t, lab.template).Memory().Header().Usage().Data() >> 20
	disk := smallDisk(t, used+40)
	free := fill(t, disk, used/2)
	b := newBench(t, lab.store(), filepath.Join(disk, "cache"), nil)
	b.leavesNothing(t, func() {
		err := b.tryResume(t, lab.template)
		isFull(t, "a wake", err)
		if err != nil && !strings.Contains(err.Error(), disk) {
			t.Errorf("the error does not name the folder: %v", err)
		}
	})
	free()
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		output(t, s, "echo fits > /fits; sync")
		free = fill(t, disk, 2)
		errs := map[string]error{"the command": errOf(try(t.Context(), s, "head -c 20000000 /dev/urandom > /large; sync; sleep 100")), "the sandbox": isOver(t, s)}
		for what, err := range errs {
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free some in "+b.scratch()) {
				t.Errorf("%s has the error %v", what, err)
			}
		}
		if err := errors.Join(s.Close(), snap.Close()); err != nil {
			t.Error(err)
		}
	})
	free()
	if err := b.tryResume(t, lab.template); err != nil { // nothing is lost
		t.Error(err)
	}
}

// TestImageDoesNotFit has no room in the cache for the file system of an image.
func TestImageDoesNotFit(t *testing.T) {
	lab.need(t)
	b := newBench(t, filepath.Join(t.TempDir(), "store"), filepath.Join(smallDisk(t, 4), "cache"), nil)
	b.leavesNothing(t, func() {
		_, err := b.Create(t.Context(), small(), NoProgress{})
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), lab.image()) {
			t.Errorf("an image that the cache has no room for: %v", err)
		}
	})
	if ids := b.ids(t); len(ids) > 0 {
		t.Errorf("the store has %v", ids)
	}
}
