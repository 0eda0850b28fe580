package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
)

// flat lays out a snapshot's memory, checks it, and tells whether it was made now.
func flat(t *testing.T, w world, s *snapshot.Snapshot) (f *os.File, made bool) {
	t.Helper()
	f, err := w.repo.FlatMemory(t.Context(), s, func(done, total int64) { made = true })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	named, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	held := make([]byte, s.Memory().Size())
	if _, err := f.ReadAt(held, 0); err != nil {
		t.Fatal(err)
	}
	if want := content(t, s.Memory()); !bytes.Equal(named, want) || !bytes.Equal(held, want) {
		t.Fatal("the flat memory is not the memory")
	}
	return f, made
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestFlatMemory(t *testing.T) {
	w := newWorld(t)
	folder := filepath.Join(w.cache, "memory")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	base := w.add(t, uuid.New(), nil, simple(1))
	s := w.add(t, uuid.New(), base, change{memory: map[int64][]byte{100 * page: pages(4, 2)}, state: "x"})
	var calls, last, total int64
	f, err := w.repo.FlatMemory(t.Context(), s, func(done, of int64) {
		if done <= last || of < done {
			t.Errorf("progress %d after %d of %d", done, last, of)
		}
		calls, last, total = calls+1, done, of
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if want := int64(36 * page); last != want || total != want || calls == 0 {
		t.Errorf("progress ended at %d of %d, want %d", last, total, want)
	}
	f, made := flat(t, w, s)
	st := stat(t, f.Name())
	// Another user, as whom a VMM runs, may open the file by a descriptor of it, but
	// can't get at it by name.
	if st.Mode&0o7777 != 0o666 || stat(t, folder).Mode&0o7777 != 0o700 || filepath.Dir(f.Name()) != folder {
		t.Errorf("file %o in a folder %o", st.Mode, stat(t, folder).Mode)
	}
	if made || st.Size != memorySize || st.Blocks*512 > 60*page {
		t.Errorf("made twice: %t, size %d, %d bytes on disk", made, st.Size, st.Blocks*512)
	}
	if left := below(t, w.cache); len(left) != 2 {
		t.Errorf("in the cache: %v", left)
	}
	// The other snapshot has its own.
	if f, made := flat(t, w, base); !made || stat(t, f.Name()).Ino == st.Ino {
		t.Error("two memories share a file")
	}
	// It can be written, which QEMU asks for; flat's next call will find out.
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		t.Error(err)
	}
}

// TestFlatMemoryPrivateMapping does what QEMU does: it opens the file for writing,
// maps it privately and writes to the mapping. Nothing of that may be seen.
func TestFlatMemoryPrivateMapping(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	f, _ := flat(t, w, s)
	before := stat(t, f.Name())
	for range 3 {
		qemu, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		p, err := unix.Mmap(int(qemu.Fd()), 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(p); i += page / 2 {
			p[i]++
		}
		if _, made := flat(t, w, s); made {
			t.Error("a private mapping counts as a change")
		}
		if err := errors.Join(unix.Munmap(p), qemu.Close()); err != nil {
			t.Fatal(err)
		}
	}
	after := stat(t, f.Name())
	if before.Ctim != after.Ctim || before.Mtim != after.Mtim || before.Blocks != after.Blocks || before.Ino != after.Ino {
		t.Errorf("the file changed: %+v to %+v", before, after)
	}
}

// TestFlatMemoryTampered changes the file behind the cache's back: it is made
// again, and is right.
func TestFlatMemoryTampered(t *testing.T) {
	tests := map[string]func(t *testing.T, path string) error{
		"a byte written": func(t *testing.T, path string) error {
			flip(t, path, 5)
			return nil
		},
		"written through a shared mapping": func(t *testing.T, path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			p, err := unix.Mmap(int(f.Fd()), 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			p[3*page] ^= 1
			return unix.Munmap(p)
		},
		"a byte written, its time set back": func(t *testing.T, path string) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			flip(t, path, 5)
			return os.Chtimes(path, time.Time{}, st.ModTime())
		},
		"cut":       func(_ *testing.T, path string) error { return os.Truncate(path, page) },
		"emptied":   func(_ *testing.T, path string) error { return os.Truncate(path, 0) },
		"prolonged": func(_ *testing.T, path string) error { return os.Truncate(path, 2*memorySize) },
		"a hole punched": func(_ *testing.T, path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, page, page)
		},
		"exchanged": func(_ *testing.T, path string) error {
			if err := os.WriteFile(path+".x", make([]byte, memorySize), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".x", path)
		},
		"removed": func(_ *testing.T, path string) error { return os.Remove(path) },
		"seal removed": func(_ *testing.T, path string) error {
			return os.Remove(strings.TrimSuffix(path, ".mem") + ".seal")
		},
		"seal garbled": func(_ *testing.T, path string) error {
			return os.WriteFile(strings.TrimSuffix(path, ".mem")+".seal", []byte("{"), 0o600)
		},
		"another boot": func(_ *testing.T, path string) error {
			seal := strings.TrimSuffix(path, ".mem") + ".seal"
			data, err := os.ReadFile(seal)
			if err != nil {
				return err
			}
			boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
			if err != nil {
				return err
			}
			return os.WriteFile(seal, bytes.ReplaceAll(data, bytes.TrimSpace(boot), []byte(uuid.NewString())), 0o600)
		},
		"cache removed": func(_ *testing.T, path string) error { return os.RemoveAll(filepath.Dir(path)) },
	}
	for name, tamper := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.add(t, uuid.New(), nil, simple(1))
			f, _ := flat(t, w, s)
			if err := tamper(t, f.Name()); err != nil { // at once, within a tick of the clock
				t.Fatal(err)
			}
			if _, made := flat(t, w, s); !made {
				t.Error("it was not made again")
			}
			if _, made := flat(t, w, s); made {
				t.Error("it was made a third time")
			}
			if left := below(t, w.cache); len(left) != 2 {
				t.Errorf("in the cache: %v", left)
			}
		})
	}
}

// TestFlatMemoryRebuiltInUse makes the file again while a machine maps the old one,
// which goes on undisturbed.
func TestFlatMemoryRebuiltInUse(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	f, _ := flat(t, w, s)
	p, err := unix.Mmap(int(f.Fd()), 0, memorySize, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(p)
	if err := os.Chmod(f.Name(), 0o640); err != nil { // harmless, but it moves the change time
		t.Fatal(err)
	}
	if _, made := flat(t, w, s); !made {
		t.Error("it was not made again")
	}
	if !bytes.Equal(p, content(t, s.Memory())) {
		t.Error("the mapping changed")
	}
}

// TestFlatMemoryOnce has many ask for one memory at once.
func TestFlatMemoryOnce(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	var copies atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		other := openWorld(t, w.root, w.cache) // as another process would
		snapshot.At(other.repo, func(point string) {
			if point == "copied" {
				copies.Add(1)
			}
		})
		all.Go(func() {
			f, err := other.repo.FlatMemory(t.Context(), s, nil)
			if err != nil {
				t.Error(err)
				return
			}
			f.Close()
		})
	}
	all.Wait()
	if n := copies.Load(); n != 1 {
		t.Errorf("copied %d times", n)
	}
	flat(t, w, s)
	if left := below(t, w.cache); len(left) != 2 {
		t.Errorf("in the cache: %v", left)
	}
}

func TestFlatMemoryCancelled(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	ctx, cancel := context.WithCancel(t.Context())
	snapshot.At(w.repo, func(point string) {
		if point == "begun" {
			cancel()
		}
	})
	if _, err := w.repo.FlatMemory(ctx, s, nil); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), s.ID().String()) {
		t.Errorf("got %v", err)
	}
	if left := below(t, w.cache); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	// One who waits for another can give up too.
	entered, leave := make(chan struct{}), make(chan struct{})
	snapshot.At(w.repo, func(point string) {
		if point == "begun" {
			close(entered)
			<-leave
		}
	})
	done := make(chan error)
	go func() {
		f, err := w.repo.FlatMemory(t.Context(), s, nil)
		if err == nil {
			err = f.Close()
		}
		done <- err
	}()
	<-entered
	other := openWorld(t, w.root, w.cache)
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := other.repo.FlatMemory(ctx, s, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, made := flat(t, w, s); made {
		t.Error("it was made twice")
	}
}

// TestFlatMemoryCoarseClock changes the file at once on a file system whose times
// tick in milliseconds, as all did before Linux 6.13.
func TestFlatMemoryCoarseClock(t *testing.T) {
	w := openWorld(t, t.TempDir(), mount(t, "ramfs", ""))
	s := w.add(t, uuid.New(), nil, simple(1))
	for range 10 {
		f, made := flat(t, w, s)
		if !made {
			t.Fatal("a change was not seen")
		}
		f.Close()
		if err := os.RemoveAll(filepath.Join(w.cache, "memory")); err != nil {
			t.Fatal(err)
		}
		// Nothing but the writing itself between the seal and the change.
		f, err := w.repo.FlatMemory(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 5); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
