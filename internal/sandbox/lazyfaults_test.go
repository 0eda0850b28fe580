package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

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
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped, and not there again
		}
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
