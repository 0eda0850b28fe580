package framecache

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/block"
)

func frame(n int) (block.Digest, []byte) {
	p := bytes.Repeat(binary.BigEndian.AppendUint32(nil, uint32(n)), 1024)
	return block.Sum(p), p
}

func usage(t *testing.T, dir string) (files int, size int64) {
	t.Helper()
	filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			files++
			size += info.Size()
		}
		return nil
	})
	return files, size
}

func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	c := Open(dir, 1<<30)
	d, p := frame(1)
	got := make([]byte, len(p))
	if c.Get(d, got) {
		t.Error("an empty cache has a frame")
	}
	c.Put(d, p)
	if !Open(dir, 1<<30).Get(d, got) || !bytes.Equal(got, p) {
		t.Error("the frame is not there")
	}
	if c.Get(d, got[1:]) {
		t.Error("a frame of another size was given")
	}
	c.Put(d, bytes.Repeat([]byte("x"), len(p))) // damage, made good by the next Put
	c.Put(d, p)
	if !c.Get(d, got) || !bytes.Equal(got, p) {
		t.Error("the frame was not replaced")
	}
	c.Drop(d)
	if c.Get(d, got) {
		t.Error("a frame that was dropped is there")
	}
	c.Drop(d)
	c.Put(d, p)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if c.Get(d, got) {
		t.Error("a deleted cache has a frame")
	}
	c.Put(d, p)
	if !c.Get(d, got) {
		t.Error("a deleted cache is not used again")
	}
	// A folder that can't be written to.
	nowhere := Open("/proc/nowhere", 1<<30)
	nowhere.Put(d, p)
	if nowhere.Get(d, got) {
		t.Error("a frame came from nowhere")
	}
}

// TestLimit fills a cache far beyond its limit: it keeps to it, and keeps what was
// used last.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	const limit = 256 * 8 * 4096 // eight frames for each folder
	c := Open(dir, limit)
	kept, p := frame(-1)
	c.Put(kept, p)
	old := time.Now().Add(-time.Hour)
	got := make([]byte, len(p))
	for n := range 12_000 {
		d, p := frame(n)
		c.Put(d, p)
		os.Chtimes(c.path(d), old, old)
		if n%100 == 0 && !c.Get(kept, got) {
			t.Fatalf("what was used is gone after %d", n)
		}
	}
	if files, size := usage(t, dir); size > limit+256*trimEvery*4096 || files < 1000 {
		t.Errorf("%d files, %d bytes, the limit is %d", files, size, limit)
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		c := Open(dir, 64<<20)
		wg.Go(func() {
			got := make([]byte, 4096)
			for n := range 500 {
				d, p := frame(n % 50)
				c.Put(d, p)
				if c.Get(d, got) && !bytes.Equal(got, p) {
					t.Errorf("frame %d has other bytes", n)
				}
			}
		})
	}
	wg.Wait()
	if files, _ := usage(t, dir); files != 50 {
		t.Errorf("%d files", files)
	}
}
