package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// The test binary starts itself with this variable set to be a process that
// works on snapshots, and may die of it.
const childEnv = "SPORE_SNAPSHOT_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := childMain(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childMain(task, root, cache string, args []string) error {
	ctx := context.Background()
	st, err := store.OpenDir(root)
	if err != nil {
		return err
	}
	deadly := newDeadly(st)
	repo, err := snapshot.Open(deadly, cache)
	if err != nil {
		return err
	}
	parent, err := repo.Open(ctx, args[0])
	if err != nil {
		return err
	}
	switch task {
	case "child":
		left, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		deadly.left.Store(int64(left))
		s, err := makeIn(ctx, repo, uuid.MustParse(args[1]), parent, simple(9), machine())
		if err != nil {
			return err
		}
		return s.Close()
	case "copy": // to another store
		left, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		other, err := store.OpenDir(args[1])
		if err != nil {
			return err
		}
		dst := newDeadly(other)
		dst.left.Store(int64(left))
		to, err := snapshot.Open(dst, cache)
		if err != nil {
			return err
		}
		_, err = to.CopyFrom(ctx, repo, parent.ID(), nil)
		return err
	case "flat":
		snapshot.At(repo, func(point string) {
			if len(args) > 1 && point == args[1] {
				die()
			}
		})
		made := false
		f, err := repo.FlatMemory(ctx, parent, func(int64, int64) {
			if made = true; len(args) > 1 && args[1] == "copying" {
				die()
			}
		})
		if err != nil {
			return err
		}
		fmt.Println(made)
		return f.Close()
	}
	return errors.New("unknown task")
}

func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// deadlyStore dies before the operation on a draft that comes after left others.
type deadlyStore struct {
	*store.Dir
	left atomic.Int64 // negative: never
}

func newDeadly(st *store.Dir) *deadlyStore {
	d := &deadlyStore{Dir: st}
	d.left.Store(-1)
	return d
}

func (d *deadlyStore) count() {
	if d.left.Add(-1) == -1 {
		die()
	}
}

func (d *deadlyStore) Begin(ctx context.Context, id uuid.UUID) (store.Draft, error) {
	d.count()
	draft, err := d.Dir.Begin(ctx, id)
	return &deadlyDraft{draft, d}, err
}

func (d *deadlyStore) BeginKept(ctx context.Context, id uuid.UUID, content string) (store.KeptDraft, error) {
	d.count()
	draft, err := d.Dir.BeginKept(ctx, id, content)
	return &deadlyKept{deadlyDraft{draft, d}, draft}, err
}

type deadlyDraft struct {
	store.Draft
	count *deadlyStore
}

func (d *deadlyDraft) Create(name string) (store.File, error) {
	d.count.count()
	f, err := d.Draft.Create(name)
	return &deadlyFile{f, d.count}, err
}

// deadlyKept is deadly while it writes to what it keeps, too.
type deadlyKept struct {
	deadlyDraft
	kept store.KeptDraft
}

func (d *deadlyKept) Keep() error { return d.kept.Keep() }

func (d *deadlyKept) Continue(name string) (store.KeptFile, error) {
	d.count.count()
	f, err := d.kept.Continue(name)
	return &deadlyKeptFile{f, d.count}, err
}

type deadlyKeptFile struct {
	store.KeptFile
	count *deadlyStore
}

func (f *deadlyKeptFile) Write(p []byte) (int, error) {
	f.count.count()
	half, err := f.KeptFile.Write(p[:len(p)/2])
	if err != nil {
		return half, err
	}
	f.count.count()
	rest, err := f.KeptFile.Write(p[len(p)/2:])
	return half + rest, err
}

func (f *deadlyKeptFile) Close() error {
	f.count.count()
	return f.KeptFile.Close()
}

func (d *deadlyDraft) Commit(ctx context.Context) error {
	d.count.count()
	err := d.Draft.Commit(ctx)
	d.count.count()
	return err
}

type deadlyFile struct {
	store.File
	count *deadlyStore
}

func (f *deadlyFile) Close() error {
	f.count.count()
	return f.File.Close()
}

// run starts the test binary for a task and tells whether it was killed.
func run(t *testing.T, w world, task string, args ...string) (out string, killed bool) {
	t.Helper()
	out, killed, err := start(t, w, task, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out, killed
}

func start(t *testing.T, w world, task string, args ...string) (out string, killed bool, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", false, err
	}
	c := exec.CommandContext(t.Context(), self, append([]string{task, w.root, w.cache}, args...)...)
	// The race detector would have each process wait a second before it exits.
	c.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	c.Stderr = os.Stderr
	data, err := c.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return string(data), true, nil
	}
	return string(data), false, err
}

// TestKillWhileMaking kills a process that makes a child at each of its steps. Then
// the store holds the parent alone, or parent and child, both whole.
func TestKillWhileMaking(t *testing.T) {
	w := newWorld(t)
	base := w.add(t, uuid.New(), nil, simple(1))
	alone := below(t, w.root)
	steps, published := 0, 0
	for ; ; steps++ {
		id := uuid.New()
		_, killed := run(t, w, "child", base.ID().String(), id.String(), strconv.Itoa(steps))
		w := openWorld(t, w.root, w.cache)
		infos, err := w.repo.List(t.Context(), func(id uuid.UUID, err error) { t.Errorf("%s: %v", id, err) })
		if err != nil {
			t.Fatal(err)
		}
		if len(infos) == 1 {
			if diff := cmp.Diff(alone, below(t, w.root)); diff != "" || !killed {
				t.Errorf("killed at step %d: %t, left %s", steps, killed, diff)
			}
			w.add(t, id, base, simple(9)) // nothing is in the way
		} else {
			published++
		}
		s, err := w.repo.OpenID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.repo.Verify(t.Context(), s, nil); err != nil {
			t.Errorf("killed at step %d: %v", steps, err)
		}
		s.Close()
		if left, _ := filepath.Glob(filepath.Join(w.root, ".drafts", "*")); len(left) > 0 {
			t.Errorf("killed at step %d: left %v", steps, left)
		}
		if !killed {
			break
		}
		if err := os.RemoveAll(filepath.Join(w.root, id.String())); err != nil {
			t.Fatal(err)
		}
	}
	if steps != 15 || published != 2 { // begin, six files made and closed, before and after the commit
		t.Errorf("died at %d steps, and the child was there after %d runs", steps, published)
	}
}

// TestKillWhileLayingOut kills a process that makes a flat memory file at each of
// its steps. The next process finds it whole, or makes it.
func TestKillWhileLayingOut(t *testing.T) {
	for _, point := range []string{"begun", "copying", "copied", "placed", "sealed"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			s := w.add(t, uuid.New(), nil, simple(1))
			if _, killed := run(t, w, "flat", s.ID().String(), point); !killed {
				t.Fatal("it lived")
			}
			if out, _ := run(t, w, "flat", s.ID().String()); strings.TrimSpace(out) != strconv.FormatBool(point != "sealed") {
				t.Errorf("made again: %s", out)
			}
			if _, made := flat(t, openWorld(t, w.root, w.cache), s); made {
				t.Error("made once more")
			}
			if left := below(t, w.cache); len(left) != 2 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// TestProcessesLayOutOnce has several processes want one memory at once.
func TestProcessesLayOutOnce(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	made := make(chan string)
	for range 4 {
		go func() {
			out, _, err := start(t, w, "flat", s.ID().String())
			if err != nil {
				t.Error(err)
			}
			made <- strings.TrimSpace(out)
		}()
	}
	counts := map[string]int{}
	for range 4 {
		counts[<-made]++
	}
	if diff := cmp.Diff(map[string]int{"true": 1, "false": 3}, counts); diff != "" {
		t.Error(diff)
	}
}

// TestKilledCopy kills a copy at each of its steps and runs it again: what is there
// in between is whole, in the end everything is, and nothing is fetched twice.
func TestKilledCopy(t *testing.T) {
	w := newWorld(t)
	killCopies(t, w, family(t, w)...)
}

// TestKilledInTheMiddle does so with a snapshot that is copied in many steps.
func TestKilledInTheMiddle(t *testing.T) {
	w := newWorld(t)
	killCopies(t, w, big(t, w))
}

// killCopies copies the last of some snapshots, which needs the others.
func killCopies(t *testing.T, w world, all ...*snapshot.Snapshot) {
	last := all[len(all)-1]
	other := filepath.Join(t.TempDir(), "other")
	kills, resumed := 0, 0
	for left := 0; ; left++ {
		if err := os.RemoveAll(other); err != nil {
			t.Fatal(err)
		}
		_, killed := run(t, w, "copy", last.ID().String(), other, strconv.Itoa(left))
		to := openWorld(t, other, w.cache)
		infos, err := to.repo.List(t.Context(), func(id uuid.UUID, err error) { t.Errorf("%s: %v", id, err) })
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			s, err := to.repo.OpenID(t.Context(), i.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := to.repo.Verify(t.Context(), s, nil); err != nil {
				t.Errorf("killed at step %d: %v", left, err)
			}
			s.Close()
		}
		if !killed {
			if len(infos) != len(all) {
				t.Errorf("%d snapshots were copied", len(infos))
			}
			break
		}
		kills++
		want, kept := missing(t, to, all)
		if kept > 0 {
			resumed++
		}
		from, read := counted(t, w)
		report, err := to.repo.CopyFrom(t.Context(), from, last.ID(), nil)
		if err != nil || len(report.Copied) != len(all)-len(infos) || report.Kept != kept {
			t.Errorf("again after step %d, with %d and %d bytes there: %+v, %v", left, len(infos), kept, report, err)
		}
		if read.Load() != want {
			t.Errorf("again after step %d: %d bytes were read, %d are missing", left, read.Load(), want)
		}
		for _, s := range all {
			sameBytes(t, w, to, s.ID())
		}
		nothingLeft(t, to)
	}
	if kills < 20 || resumed < 4 {
		t.Errorf("killed only %d times, in the middle of a snapshot %d times", kills, resumed)
	}
}

// TestKilledAgainAndAgain has each run come only a little further.
func TestKilledAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	s := big(t, w)
	other := filepath.Join(t.TempDir(), "other")
	runs := 1
	for ; runs < 20; runs++ {
		if _, killed := run(t, w, "copy", s.ID().String(), other, "18"); !killed {
			break
		}
	}
	if runs < 3 || runs == 20 {
		t.Errorf("it took %d runs", runs)
	}
	to := openWorld(t, other, w.cache)
	sameBytes(t, w, to, s.ID())
	nothingLeft(t, to)
}
