package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childVar makes the test binary, run again, do something in the cache that
// it names.
const childVar = "SPORE_IMAGE_TEST_CHILD"

// pauseVar is how long its layer makes it wait.
const pauseVar = "SPORE_IMAGE_TEST_PAUSE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVar); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

// child builds an image whose layer counts how often it is read, in a file
// next to the cache, and comes slowly.
func child(dir string) int {
	b, err := New(dir, Options{})
	if err == nil {
		var pause time.Duration
		if pause, err = time.ParseDuration(os.Getenv(pauseVar)); err == nil {
			_, err = b.Ext4(context.Background(), slow(dir, func() { time.Sleep(pause) }), nil)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// slow is an image whose layer calls pause when it is opened.
func slow(dir string, pause func()) *Image {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	tw.WriteHeader(&tar.Header{Name: "f", Size: 5, Mode: 0o644})
	io.WriteString(tw, "hello")
	tw.Close()
	raw := buf.Bytes()
	img := stack(true, raw)
	img.layers[0].open = func(context.Context) (io.ReadCloser, error) {
		f, err := os.OpenFile(filepath.Join(dir, "opened"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		f.WriteString("x")
		pause()
		return io.NopCloser(bytes.NewReader(raw)), nil
	}
	return img
}

func opened(t testing.TB, dir string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "opened"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(raw)
}

func TestBuildOnceInOneProcess(t *testing.T) {
	dir := t.TempDir()
	var wg, waiting sync.WaitGroup
	waiting.Add(7) // the eighth builds, and goes on when all others wait for it
	paths := make([]string, 8)
	for i := range paths {
		wg.Go(func() {
			b, err := New(dir, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			var once sync.Once
			paths[i], err = b.Ext4(context.Background(), slow(dir, waiting.Wait), func(phase Phase, _, _ int64) {
				if phase == PhaseWait {
					once.Do(waiting.Done)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range paths {
		if p != paths[0] {
			t.Errorf("%s, %s", p, paths[0])
		}
	}
	if n := opened(t, dir); n != 1 {
		t.Errorf("the layer was read %d times", n)
	}
	check(t, paths[0])
}

func TestBuildOnceInManyProcesses(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childVar+"="+dir, pauseVar+"=300ms")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if n := opened(t, dir); n != 1 {
		t.Errorf("the layer was read %d times", n)
	}
}

// TestKilled kills a builder in the middle of its work: the next one builds,
// and clears up.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"="+dir, pauseVar+"=1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for opened(t, dir) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the child does not begin")
		}
		time.Sleep(5 * time.Millisecond)
	}
	alive, err := New(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if work, _ := filepath.Glob(dir + "/tmp/build-*"); len(work) != 1 {
		t.Fatalf("the work of a living builder is gone: %q", work)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if work, _ := filepath.Glob(dir + "/tmp/build-*"); len(work) != 1 {
		t.Fatalf("it left nothing to clear up: %q", work)
	}
	path, err := alive.Ext4(context.Background(), slow(dir, func() {}), nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, path)
	next, err := New(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, next)
}

func TestCancel(t *testing.T) {
	for name, when := range map[string]Phase{"pull": PhasePull, "build": PhaseBuild} {
		t.Run(name, func(t *testing.T) {
			b := builder(t, Options{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			body := strings.Repeat("some content ", 1<<18)
			_, err := b.Ext4(ctx, stack(true, pack(t, &tar.Header{Name: "a", Uname: body}, &tar.Header{Name: "b", Uname: body})), func(phase Phase, done, total int64) {
				if phase == when && done > 0 {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("wait", func(t *testing.T) {
		b := builder(t, Options{})
		img := slow(t.TempDir(), func() {})
		unlock, err := b.cache.lock(context.Background(), formatVersion+"-"+strings.TrimPrefix(img.Digest, "sha256:"), func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := b.Ext4(ctx, img, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	t.Run("dir", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/f", make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		b := builder(t, Options{})
		img, err := b.Resolve(context.Background(), "dir:"+dir, Platform{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		_, err = b.Ext4(ctx, img, func(Phase, int64, int64) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if _, err := b.Resolve(ctx, "dir:"+dir, Platform{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestCacheDeleted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	b, err := New(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	img := slow(t.TempDir(), func() {})
	path, err := b.Ext4(context.Background(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := sumFile(path)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ext4(context.Background(), img, nil); err != nil {
		t.Fatalf("after the cache was deleted: %v", err)
	}
	if again, _ := sumFile(path); again != sum {
		t.Error("it came out as other bytes")
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o444 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestGrow(t *testing.T) {
	b := builder(t, Options{})
	path, err := b.Ext4(context.Background(), slow(t.TempDir(), func() {}), nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, size := range []int64{
		info.Size(), info.Size() + 4096, 64 << 20, 128 << 20, 128<<20 + 4096, 131 << 20, 512 << 20,
		16<<30 - 4096, 16 << 30, 16<<30 + 8192, 40 << 30, 300 << 30, 1 << 40,
	} {
		dst := filepath.Join(dir, fmt.Sprint(size))
		if err := Grow(context.Background(), path, dst, size); err != nil {
			t.Errorf("%d: %v", size, err)
			continue
		}
		got, err := os.Stat(dst)
		if err != nil || got.Size() != size {
			t.Errorf("%d: %v, %v", size, got, err)
		}
		if size <= 40<<30 {
			check(t, dst)
		}
		again := dst + ".again"
		if size < 1<<30 {
			if err := Grow(context.Background(), path, again, size); err != nil || !sameFile(t, dst, again) {
				t.Errorf("%d: not the same again: %v", size, err)
			}
		}
		os.Remove(dst)
		os.Remove(again)
	}
	for _, size := range []int64{0, -4096, 4095, 1<<40 + 128<<20, 1 << 62} {
		dst := filepath.Join(dir, "bad")
		if err := Grow(context.Background(), path, dst, size); err == nil {
			t.Errorf("%d: no error", size)
		}
		if _, err := os.Stat(dst); err == nil {
			t.Errorf("%d: left behind", size)
		}
	}
	err = Grow(context.Background(), path, filepath.Join(dir, "small"), info.Size()-4096)
	if !errors.Is(err, ErrTooSmall) || !strings.Contains(err.Error(), fmt.Sprint(info.Size())) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "there"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Grow(context.Background(), path, filepath.Join(dir, "there"), 64<<20); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "there")); err != nil {
		t.Error("and it is gone")
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Grow(context.Background(), other, filepath.Join(dir, "x"), 64<<20); err == nil {
		t.Error("grew what is no file system")
	}
}

// TestGrownIsWritable fills a grown file system through the kernel, to its
// last block and over all its groups.
func TestGrownIsWritable(t *testing.T) {
	needRoot(t)
	b := builder(t, Options{})
	path, err := b.Ext4(context.Background(), slow(t.TempDir(), func() {}), nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := Grow(context.Background(), path, disk, 300<<20); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", disk, mnt).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range 500 {
		if err := os.MkdirAll(fmt.Sprintf("%s/d%d/e", mnt, i), 0o755); err != nil {
			t.Error(err)
			break
		}
	}
	if err := os.WriteFile(mnt+"/f", []byte("changed"), 0o644); err != nil {
		t.Error(err)
	}
	f, err := os.Create(mnt + "/fill")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(f, bytes.NewReader(bytes.Repeat([]byte("fill"), 100<<20)))
	f.Close()
	if err == nil || n < 250<<20 {
		t.Errorf("%d bytes fit: %v", n, err)
	}
	if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Without a journal the kernel leaves the sign of a clean file system to
	// the unmounting, so this is one.
	check(t, disk)
	if err := Grow(context.Background(), disk, disk+"2", 400<<20); err == nil {
		t.Error("grew what was mounted meanwhile")
	}
}
