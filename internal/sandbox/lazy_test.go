package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	all, err := filepath.Glob(filepath.Join(b.cache, "frames", "*", "*"))
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

// TestLazyServerKilled kills the process that serves memory: the machine ends, and tells why.
func TestLazyServerKilled(t *testing.T) {
	b := lazily(t, 0)
	b.leavesNothing(t, func() {
		snap := b.open(t, lab.template)
		defer snap.Close()
		s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		output(t, s, "true")
		if err := unix.Kill(b.server(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"the sandbox": isOver(t, s), "a command": errOf(try(t.Context(), s, "true")), "a pause": pauseError(t, s)} {
			if err == nil || !strings.Contains(err.Error(), "reading memory") || !strings.Contains(err.Error(), "killed") {
				t.Errorf("%s has the error %v", what, err)
			}
		}
	})
}

// TestLazySourceLost loses the store at some point of a wake or after: there is an error that says so, and never a machine that hangs or goes wrong.
func TestLazySourceLost(t *testing.T) {
	for _, after := range []int64{1, 30, 120} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			b := lazily(t, after)
			b.leavesNothing(t, func() {
				snap := b.open(t, lab.template)
				defer snap.Close()
				s, err := b.Resume(t.Context(), snap, ResumeOptions{}, NoProgress{})
				if err == nil {
					defer s.Close()
					err = errOf(try(t.Context(), s, "find / -xdev -type f -exec md5sum {} + > /dev/null"))
					if over := isOver(t, s); err == nil {
						err = over
					}
				}
				if err == nil || !strings.Contains(err.Error(), errLost.Error()) {
					t.Errorf("the error is %v", err)
				}
			})
		})
	}
}

// TestLazyDamaged damages all frames of memory in the store but those that a wake needs first: who touches one is ended with an error that names it.
func TestLazyDamaged(t *testing.T) {
	b := lazily(t, 0)
	damage(t, filepath.Join(b.store, lab.template.String(), snapshot.MemoryFile), func(p []byte) []byte {
		for at := 0; at < len(p); at += 64 << 10 {
			p[at+100] ^= 1
		}
		return p
	})
	b.leavesNothing(t, func() {
		err := b.tryResume(t, lab.template)
		var frame *block.CorruptError
		if !errors.As(err, &frame) || frame.Layer != lab.template || !strings.Contains(err.Error(), fmt.Sprint("frame ", frame.Frame)) {
			t.Errorf("waking has the error %v", err)
		}
	})
}

// TestLazyCacheDamaged damages every frame in the cache: they come from the store again, and are right in the cache afterwards.
func TestLazyCacheDamaged(t *testing.T) {
	b := lazily(t, 0)
	s := b.resume(t, lab.template)
	counts(t, s, 1)
	s.Close()
	before := b.frames(t)
	for _, name := range before {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/3] ^= 8
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = b.resume(t, lab.template)
	counts(t, s, 1)
	healed := 0
	for _, name := range before {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Base(filepath.Dir(name)) + filepath.Base(name); strings.HasSuffix(block.Sum(data).String(), want) {
			healed++
		}
	}
	if healed < len(before)/2 {
		t.Errorf("%d of %d frames are right again", healed, len(before))
	}
}

// TestLazyCacheGone deletes the cache under machines that wake and run, makes it impossible to write to, and lets its disk be full: it only costs time.
func TestLazyCacheGone(t *testing.T) {
	b := lazily(t, 0)
	frames := filepath.Join(b.cache, "frames")
	s := b.resume(t, lab.template)
	eventually(t, "the cache is deleted while it is written to", func() bool { return os.RemoveAll(frames) == nil })
	n := counts(t, s, 1)
	output(t, s, "cat /late | wc -c; ls -lR /bin > /dev/null")
	id := pause(t, s, PauseSpec{})
	s.Close()
	for name, spoil := range map[string]func(*testing.T) error{
		"deleted all the time": func(t *testing.T) error {
			over := make(chan struct{})
			t.Cleanup(func() { <-over })
			go func() {
				defer close(over)
				for ; t.Context().Err() == nil; time.Sleep(time.Millisecond) {
					os.RemoveAll(frames)
				}
			}()
			return nil
		},
		"a file": func(*testing.T) error { return errors.Join(os.RemoveAll(frames), os.WriteFile(frames, nil, 0o600)) },
		"full": func(t *testing.T) error {
			if err := errors.Join(os.RemoveAll(frames), os.Mkdir(frames, 0o700), unix.Mount("none", frames, "tmpfs", 0, "size=1m")); err != nil {
				return err
			}
			t.Cleanup(func() { unix.Unmount(frames, unix.MNT_DETACH) })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(t); err != nil {
				t.Fatal(err)
			}
			w := b.resume(t, id)
			counts(t, w, n)
			b.verify(t, pause(t, w, PauseSpec{}))
		})
	}
}

// TestLazyInterrupted interrupts wakes: nothing is left.
func TestLazyInterrupted(t *testing.T) {
	b := lazily(t, 0)
	snap := b.open(t, lab.template)
	for _, phase := range []string{"memory", "wake"} {
		b.leavesNothing(t, func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := b.Resume(ctx, snap, ResumeOptions{}, phaseFunc(func(at string) {
				if at == phase {
					cancel()
				}
			}))
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("interrupted in %s: %v", phase, err)
			}
		})
	}
}

// TestLazyUnsupported lays memory out where it can't be served.
func TestLazyUnsupported(t *testing.T) {
	b := lazily(t, 0)
	for _, reason := range []error{errors.ErrUnsupported, errors.New("another")} {
		b.LazyMemory = func(context.Context, *snapshot.Snapshot, LazyOptions) (LazyMemory, error) { return nil, reason }
		s := b.resume(t, lab.template)
		counts(t, s, 1)
		if len(entries(t, filepath.Join(b.cache, "memory"))) == 0 {
			t.Error("memory was not laid out")
		}
		b.learn(t.Context(), s.Snapshot(), NoProgress{})
		if p, err := b.Snapshots.Prefetch(t.Context(), lab.template); p != nil || err != nil {
			t.Errorf("learned %v, %v", p, err)
		}
	}
}
