package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/storetest"
)

// The test binary starts itself with this variable set to be a process that
// works on a store, and may die of it.
const childEnv = "SPORE_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := childMain(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childMain(task, root string, args []string) error {
	d, err := store.OpenDir(root)
	if err != nil {
		return err
	}
	if task == "race" {
		return raceFor(d, args)
	}
	id, err := uuid.Parse(args[0])
	if err != nil {
		return err
	}
	store.At(d, func(point string) {
		if len(args) < 2 {
			fmt.Println(point)
		} else if point == args[1] {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	switch task {
	case "publish":
		return publish(d, id)
	case "copy":
		return publish(keeping{d}, id)
	case "remove":
		return d.Remove(ctx(), id, nil)
	case "name":
		return d.SetName(ctx(), "name", id)
	}
	return errors.New("unknown task")
}

var content = map[string]string{"memfile": strings.Repeat("data", 50_000), "memfile.header": "head", store.Manifest: "{}"}

func publish(d store.Store, id uuid.UUID) error {
	draft, err := d.Begin(ctx(), id)
	if err != nil {
		return err
	}
	defer draft.Abort()
	for _, name := range []string{"memfile", "memfile.header", store.Manifest} {
		f, err := draft.Create(name)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, content[name])
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return draft.Commit(ctx())
}

func child(t *testing.T, task, root string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, append([]string{task, root}, args...)...)
	// The race detector would have each process wait a second before it exits.
	c.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	c.Stderr = os.Stderr
	return c
}

// whole checks that a snapshot is there with all that was written to it.
func whole(t *testing.T, d *store.Dir, id uuid.UUID) {
	t.Helper()
	for name, want := range content {
		o, err := d.Open(t.Context(), id, name)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		o.Close()
	}
}

// TestKill kills a process with SIGKILL at every point of a publication, of a
// removal and of a naming, and looks at what the next start finds: the old state
// or the new one, and nothing else.
func TestKill(t *testing.T) {
	old, id := uuid.New(), uuid.New()
	tests := []struct {
		task    string
		done    []string // the points at which the new state holds
		prepare func(t *testing.T, d *store.Dir)
		check   func(t *testing.T, d *store.Dir, done bool)
	}{
		{
			task:    "publish",
			done:    []string{"after the rename", "committed"},
			prepare: func(*testing.T, *store.Dir) {},
			check: func(t *testing.T, d *store.Dir, done bool) {
				if !done {
					if err := publish(d, id); err != nil { // nothing is in the way
						t.Error(err)
					}
				}
				whole(t, d, id)
			},
		},
		{
			task:    "copy",
			done:    []string{"after the rename", "committed"},
			prepare: func(*testing.T, *store.Dir) {},
			check: func(t *testing.T, d *store.Dir, done bool) {
				left, _ := filepath.Glob(filepath.Join(d.Root(), ".partial", "*"))
				if done == (len(left) > 0) {
					t.Errorf("done: %t, left %v", done, left)
				}
				if !done {
					if err := publish(keeping{d}, id); err != nil {
						t.Error(err)
					}
				}
				whole(t, d, id)
			},
		},
		{
			task: "remove",
			done: []string{"remove: after the rename", "remove: names gone"},
			prepare: func(t *testing.T, d *store.Dir) {
				storetest.Publish(t, d, id, content)
				if err := d.SetName(t.Context(), "name", id); err != nil {
					t.Fatal(err)
				}
			},
			check: func(t *testing.T, d *store.Dir, done bool) {
				want := map[string]uuid.UUID{"name": id}
				if done {
					want = map[string]uuid.UUID{}
				}
				wantNames(t, d, want)
				if _, err := d.Open(t.Context(), id, "memfile"); done != errors.Is(err, store.ErrNoSnapshot) {
					t.Errorf("removed: %t, but opening gives %v", done, err)
				}
				if !done {
					whole(t, d, id)
				}
			},
		},
		{
			task: "name",
			done: []string{"name set"},
			prepare: func(t *testing.T, d *store.Dir) {
				storetest.Publish(t, d, id, content)
				if err := d.SetName(t.Context(), "name", old); err != nil {
					t.Fatal(err)
				}
			},
			check: func(t *testing.T, d *store.Dir, done bool) {
				want := old
				if done {
					want = id
				}
				wantNames(t, d, map[string]uuid.UUID{"name": want})
			},
		},
	}
	for _, test := range tests {
		// A run without death tells which points there are.
		prepare := func(t *testing.T) string {
			root := t.TempDir()
			d := openDir(t, root)
			storetest.Publish(t, d, old, content)
			test.prepare(t, d)
			return root
		}
		out, err := child(t, test.task, prepare(t), id.String()).Output()
		if err != nil {
			t.Fatal(err)
		}
		points := strings.Split(strings.TrimSpace(string(out)), "\n")
		for _, done := range test.done {
			if !slices.Contains(points, done) {
				t.Errorf("%s has no point %q", test.task, done)
			}
		}
		for _, point := range points {
			t.Run(test.task+"/"+point, func(t *testing.T) {
				root := prepare(t)
				c := child(t, test.task, root, id.String(), point)
				err := c.Run()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
					t.Fatalf("the child ended with %v, not by SIGKILL", err)
				}
				done := slices.Contains(test.done, point)
				d := openDir(t, root)
				ids, err := d.List(t.Context())
				if err != nil || !slices.Contains(ids, old) {
					t.Errorf("listed %v, %v", ids, err)
				}
				if (test.task == "publish" || test.task == "copy") && slices.Contains(ids, id) != done {
					t.Errorf("published: %t, want %t", !done, done)
				}
				for _, name := range files(t, root) {
					if strings.HasPrefix(name, ".drafts") || strings.HasSuffix(name, ".new") {
						t.Errorf("left %s", name)
					}
				}
				whole(t, d, old)
				test.check(t, d, done)
			})
		}
	}
}

func wantNames(t *testing.T, d *store.Dir, want map[string]uuid.UUID) {
	t.Helper()
	got, err := d.Names(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// raceFor tries to publish all ids and prints those that it won. Then it reads
// all of them, whoever won.
func raceFor(d *store.Dir, ids []string) error {
	out := bufio.NewWriter(os.Stdout)
	for _, text := range ids {
		err := publish(d, uuid.MustParse(text))
		if err == nil {
			fmt.Fprintln(out, text)
		} else if !errors.Is(err, store.ErrExist) {
			return err
		}
		if _, err := store.OpenDir(d.Root()); err != nil { // as every command does
			return err
		}
	}
	return out.Flush()
}

// TestProcesses has several processes publish the same ids in one store.
func TestProcesses(t *testing.T) {
	root := t.TempDir()
	var ids []string
	for range 40 {
		ids = append(ids, uuid.NewString())
	}
	var children []*exec.Cmd
	var outs []*strings.Builder
	for range 3 {
		c, out := child(t, "race", root, ids...), new(strings.Builder)
		c.Stdout = out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children, outs = append(children, c), append(outs, out)
	}
	won := map[string]int{}
	for i, c := range children {
		if err := c.Wait(); err != nil {
			t.Errorf("process %d: %v", i, err)
		}
		for _, id := range strings.Fields(outs[i].String()) {
			won[id]++
		}
	}
	d := openDir(t, root)
	for _, id := range ids {
		if won[id] != 1 {
			t.Errorf("%s was published %d times", id, won[id])
		}
		whole(t, d, uuid.MustParse(id))
	}
	slices.Sort(ids)
	if diff := cmp.Diff(ids, slices.Sorted(maps.Keys(won))); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".drafts", "*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
