package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/expose/exposetest"
	"github.com/sporevm/spore/internal/farmemory"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// memoryEnv makes the test binary a server of memory.
const memoryEnv = "SPORE_SANDBOX_TEST_MEMORY"

// memoryTask is what such a server serves from, as JSON in its environment.
type memoryTask struct {
	Store, Cache string
	FailAfter    int64 // reads of memory; 0: never
}

func memoryMain(text string) error {
	var task memoryTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	open := func(context.Context) (*snapshot.Repo, error) { return openFar(task) }
	return farmemory.Serve(context.Background(), os.NewFile(farmemory.SocketFD, "socket"), open, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// openFar opens a store in a folder as if it were far away.
func openFar(task memoryTask) (*snapshot.Repo, error) {
	dir, err := store.OpenDir(task.Store)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(&failing{Store: dir, after: task.FailAfter}, task.Cache, snapshot.Far(framecache.Open(filepath.Join(task.Cache, "frames"), 1<<30)))
}

// failing is a store that is lost after so many reads of memory.
type failing struct {
	store.Store
	after int64
	reads atomic.Int64
}

var errLost = errors.New("the store is lost")

func (s *failing) Open(ctx context.Context, id uuid.UUID, artifact string) (store.Object, error) {
	o, err := s.Store.Open(ctx, id, artifact)
	if err == nil && artifact == snapshot.MemoryFile && s.after > 0 {
		return &failingObject{o, s}, nil
	}
	return o, err
}

type failingObject struct {
	store.Object
	store *failing
}

func (o *failingObject) ReadAt(p []byte, off int64) (int, error) {
	if o.store.reads.Add(1) > o.store.after {
		return 0, errLost
	}
	return o.Object.ReadAt(p, off)
}

// lazyBench is a host whose store is far away.
type lazyBench struct {
	bench
	cache string

	mu   sync.Mutex
	held []*farmemory.Memory // as they were opened
}

// lazily returns a host on a store of its own that shares all files with the lab's, far away.
func lazily(t *testing.T, failAfter int64) *lazyBench {
	t.Helper()
	if err := exposetest.FUSE(); err != nil {
		t.Skipf("SKIP: memory can't be served lazily here: %v", err)
	}
	near := linked(t)
	b := &lazyBench{cache: filepath.Join(t.TempDir(), "cache")}
	task := memoryTask{Store: near.store, Cache: b.cache, FailAfter: failAfter}
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := openFar(memoryTask{Store: near.store, Cache: b.cache})
	if err != nil {
		t.Fatal(err)
	}
	servers := &farmemory.Servers{Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), memoryEnv+"="+string(text))
		return cmd
	}}
	o := near.HostOptions
	o.Snapshots, o.CacheDir, o.RunDir = repo, b.cache, runFolder(t)
	o.LazyMemory = func(ctx context.Context, s *snapshot.Snapshot, o LazyOptions) (LazyMemory, error) {
		m, err := servers.Open(ctx, s, farmemory.Options{Prefetch: o.Prefetch, Record: o.Record, Failed: o.Failed})
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.held = append(b.held, m)
		return m, nil
	}
	h, err := NewHost(o)
	if err != nil {
		t.Fatal(err)
	}
	b.bench = bench{h, near.store}
	return b
}

// server is the process that serves the memory that was opened last.
func (b *lazyBench) server() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[len(b.held)-1].Server()
}

// frames are the files of the frame cache.
func (b *lazyBench) frames(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(b.cache, "frames", "*", "[^.]*")) // hidden are those that are being written
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// notLaidOut checks that no memory was laid out as a file.
func (b *lazyBench) notLaidOut(t *testing.T) {
	t.Helper()
	if files := entries(t, filepath.Join(b.cache, "memory")); len(files) > 0 {
		t.Errorf("memory was laid out: %v", files)
	}
}

// TestLazyLife takes a machine from afar through its life: it wakes, works, is frozen, goes on, and its child wakes. Less than all of its memory comes.
func TestLazyLife(t *testing.T) {
	b := lazily(t, 0)
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		defer snap.Close()
		s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		n := counts(t, s, 1)
		header := s.Snapshot().Memory().Header()
		if all, came := len(header.Layers[len(header.Layers)-1].Frames), len(b.frames(t)); came == 0 || came > all*3/4 {
			t.Errorf("%d of %d frames came", came, all)
		}
		output(t, s, "echo kept > /note; head -c 3000000 /dev/urandom > /tmp/noise; md5sum < /tmp/noise > /sum")
		first, _, err := s.Pause(t.Context(), PauseSpec{KeepRunning: true}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if own := ownBytes(first.Memory()); own < 3_000_000 || own > 40<<20 {
			t.Errorf("the child stores %d bytes of memory", own)
		}
		n = counts(t, s, n)
		output(t, s, "md5sum < /tmp/noise | cmp - /sum")
		second := pause(t, s, PauseSpec{})
		for _, id := range []uuid.UUID{first.ID(), second} {
			snap := b.open(t, id)
			w, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
			if err != nil {
				t.Fatal(err)
			}
			output(t, w, "md5sum < /tmp/noise | cmp - /sum && cat /note")
			if id == second {
				counts(t, w, n)
			}
			if err := errors.Join(w.Close(), snap.Close()); err != nil {
				t.Error(err)
			}
		}
		b.notLaidOut(t)
	})
	for _, id := range b.ids(t) {
		b.verify(t, id)
	}
}

// TestLazyTogether wakes two machines of a snapshot: one process serves both, and stays when the first ends.
func TestLazyTogether(t *testing.T) {
	b := lazily(t, 0)
	one := b.resume(t, lab.template)
	server := b.server()
	two := b.resume(t, lab.template)
	if b.server() != server {
		t.Error("each has a server of its own")
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	counts(t, two, 1)
	output(t, two, "cat /late | wc -c")
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	if unix.Kill(server, 0) == nil {
		t.Error("the server is left over")
	}
}

// TestLearn records what a wake touches, and wakes by that.
func TestLearn(t *testing.T) {
	b := lazily(t, 0)
	snap := b.open(t, lab.template)
	b.learn(t.Context(), snap, NoProgress{})
	pages, err := b.Snapshots.Prefetch(t.Context(), lab.template)
	if err != nil {
		t.Fatal(err)
	}
	// Were the kernel to read ahead, it would be nearly all.
	if all := small().MemoryBytes / block.DefaultBlockSize; pages.Len() < 200 || pages.Len() > all/4 {
		t.Errorf("%d of %d pages are touched", pages.Len(), all)
	}
	if err := os.RemoveAll(filepath.Join(b.cache, "frames")); err != nil {
		t.Fatal(err)
	}
	s := b.resume(t, lab.template)
	counts(t, s, 1)
	b.notLaidOut(t)
	again, err := b.Touched(t.Context(), snap)
	if err != nil {
		t.Fatal(err)
	}
	if both := pages.And(again); both.Len() < pages.Len()*3/4 {
		t.Errorf("of %d pages that were learned a wake touches %d", pages.Len(), both.Len())
	}
}

// TestLearnAtCreate makes a machine with and without.
func TestLearnAtCreate(t *testing.T) {
	b := lazily(t, 0)
	for _, no := range []bool{false, true} {
		spec := small()
		spec.NoPrefetch = no
		id := b.create(t, spec)
		if pages, err := b.Snapshots.Prefetch(t.Context(), id); err != nil || (pages == nil) != no {
			t.Errorf("without is %v: %d pages, %v", no, pages.Len(), err)
		}
	}
}
