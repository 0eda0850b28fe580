package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// bench is a host, and the folders that it works in.
type bench struct {
	*Host
	store string
}

// shared returns a host on the lab's store and cache. A nil engine is QEMU.
func shared(t *testing.T, engine vmm.Engine) bench {
	lab.need(t)
	return newBench(t, lab.store(), lab.cache(), engine)
}

// fresh returns a host with a store of its own and the lab's cache.
func fresh(t *testing.T, engine vmm.Engine) bench {
	lab.need(t)
	return newBench(t, filepath.Join(t.TempDir(), "store"), lab.cache(), engine)
}

// newBench makes a host that has to leave nothing in its run folder.
func newBench(t *testing.T, storeDir, cache string, engine vmm.Engine) bench {
	t.Helper()
	h, err := openHost(storeDir, cache, runFolder(t), engine, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return bench{h, storeDir}
}

func runFolder(t *testing.T) string {
	t.Helper()
	run, err := os.MkdirTemp("", "spore-run") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := entries(t, run); len(left) > 0 {
			t.Errorf("left in the run folder: %v", left)
		}
		os.RemoveAll(run)
	})
	return run
}

// entries lists a folder, which need not be there.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// open opens a snapshot for as long as the test runs.
func (b bench) open(t *testing.T, id uuid.UUID) *snapshot.Snapshot {
	t.Helper()
	snap, err := b.Snapshots.OpenID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snap.Close() })
	return snap
}

// resume wakes a snapshot for as long as the test runs.
func (b bench) resume(t *testing.T, id uuid.UUID) *Sandbox {
	t.Helper()
	s, err := b.Resume(t.Context(), b.open(t, id), ResumeOptions{}, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing a sandbox: %v", err)
		}
	})
	return s
}

// pause pauses a sandbox and returns the snapshot's id.
func pause(t *testing.T, s *Sandbox, spec PauseSpec) uuid.UUID {
	t.Helper()
	snap, report, err := s.Pause(t.Context(), spec, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Stopped <= 0 || report.Total < report.Stopped || report.MemoryBytes <= 0 {
		t.Errorf("implausible report: %+v", report)
	}
	if err := snap.Close(); err != nil {
		t.Error(err)
	}
	return snap.ID()
}

// create makes a machine and returns its snapshot's id.
func (b bench) create(t *testing.T, spec CreateSpec) uuid.UUID {
	t.Helper()
	snap, err := b.Create(t.Context(), spec, NoProgress{})
	if err != nil {
		t.Fatal(err)
	}
	snap.Close()
	return snap.ID()
}

// ids lists the store.
func (b bench) ids(t *testing.T) []uuid.UUID {
	t.Helper()
	list, err := b.Snapshots.List(t.Context(), func(id uuid.UUID, err error) { t.Errorf("snapshot %s: %v", id, err) })
	if err != nil {
		t.Fatal(err)
	}
	var ids []uuid.UUID
	for _, info := range list {
		ids = append(ids, info.ID)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// verify checks every byte of a snapshot.
func (b bench) verify(t *testing.T, id uuid.UUID) {
	t.Helper()
	if err := b.Snapshots.Verify(t.Context(), b.open(t, id), nil); err != nil {
		t.Errorf("snapshot %s: %v", id, err)
	}
}

// try runs a shell line and returns what it prints.
func try(ctx context.Context, s *Sandbox, line string) (string, error) {
	var out bytes.Buffer
	cmd := s.Command([]string{"/bin/sh", "-c", line})
	cmd.Stdout, cmd.Stderr = &out, &out
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	status, err := s.Run(ctx, cmd)
	if err == nil && !status.Success() {
		err = errors.New(status.String() + ": " + out.String())
	}
	return strings.TrimSpace(out.String()), err
}

// output is try for lines that succeed.
func output(t *testing.T, s *Sandbox, line string) string {
	t.Helper()
	out, err := try(t.Context(), s, line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return out
}

// count is how far the template's process has counted.
func count(t *testing.T, s *Sandbox) int {
	t.Helper()
	n, err := strconv.Atoi(output(t, s, "cat /count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// counts checks that the template's process counts on from at least n, and returns where it is.
func counts(t *testing.T, s *Sandbox, n int) int {
	t.Helper()
	first := count(t, s)
	if first < n {
		t.Errorf("the process starts at %d again, it was at %d", first, n)
	}
	eventually(t, "the process counts on", func() bool { n = count(t, s); return n > first })
	return n
}

// patience is how long a busy machine may take for what takes moments on an idle one. Nothing waits so long but a test that fails.
const patience = 2 * time.Minute

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so within %v: %s", patience, what)
		}
	}
}

// children are the processes that this one has started and that have not ended.
func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// descriptors are the files that this process has open.
func descriptors(t *testing.T) []string {
	t.Helper()
	var open []string
	for _, fd := range entries(t, "/proc/self/fd") {
		target, err := os.Readlink("/proc/self/fd/" + fd)
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			open = append(open, target)
		}
	}
	return open
}

// leavesNothing runs f and checks that no process, descriptor, goroutine, draft, lock or scratch file is left of it.
func (b bench) leavesNothing(t *testing.T, f func()) {
	t.Helper()
	files, known := descriptors(t), goleak.IgnoreCurrent()
	f()
	var now []string
	deadline := time.Now().Add(patience)
	for ; ; time.Sleep(10 * time.Millisecond) {
		if now = descriptors(t); len(now) <= len(files) || time.Now().After(deadline) {
			break
		}
	}
	if len(now) > len(files) {
		slices.Sort(files)
		slices.Sort(now)
		t.Errorf("descriptors: %d before, %d after\n%s\n%s", len(files), len(now), strings.Join(files, "\n"), strings.Join(now, "\n"))
	}
	err := goleak.Find(known) // it tries for half a second
	for err != nil && time.Now().Before(deadline) {
		err = goleak.Find(known)
	}
	if err != nil {
		t.Error(err)
	}
	b.isClean(t)
}

// isClean checks that nothing is under way.
func (b bench) isClean(t *testing.T) {
	t.Helper()
	if left := children(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	for _, dir := range []string{b.RunDir, filepath.Join(b.store, ".drafts"), b.scratch(), b.locks()} {
		if left := entries(t, dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// isOver waits for the end of a sandbox's machine and returns why.
func isOver(t *testing.T, s *Sandbox) error {
	t.Helper()
	select {
	case <-s.Done():
		return s.Err()
	case <-time.After(patience):
		t.Fatal("the machine still runs")
		return nil
	}
}

func testLog(t *testing.T) slog.Handler { return slog.NewTextHandler(t.Output(), nil) }
