package pager

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
)

const testSize = 16 << 20

func TestContent(t *testing.T) {
	for name, o := range map[string]block.WriterOptions{
		"plain": {}, "zstd": {Codec: block.Zstd}, "frames of a page": {FrameSize: 4 << 10}, "large frames": {FrameSize: 1 << 20},
		"large blocks": {BlockSize: 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			l, i := newLab(t), newImage(t, testSize, o)
			c := l.fork(i, "a")
			check(t, c, i.all(1, 4))
			c = l.fork(i, "b")
			check(t, c, i.all(0, 1))
			if s := l.stats(i); s.FramesRead != i.frames() || s.Faults == 0 || s.Forks != 2 || s.Connected != 2 {
				t.Errorf("%+v; the image has %d frames", s, i.frames())
			}
		})
	}
}

// A cache with room for a fraction of the image.
func TestSmallCache(t *testing.T) {
	i := newImage(t, testSize, block.WriterOptions{FrameSize: 128 << 10})
	l := newLab(t, func(c *Config) { c.CacheBytes = 1 })
	c, d := l.fork(i, "a"), l.fork(i, "b")
	wait, err := c.StartTouch(i.all(1, 4))
	if err != nil {
		t.Fatal(err)
	}
	check(t, d, i.all(2, 4))
	got, err := wait()
	if err != nil || len(got.Wrong) > 0 {
		t.Fatal(got.Wrong, err)
	}
	if s := l.stats(i); s.FramesRead <= i.frames() {
		t.Errorf("%d of %d frames read: the cache has no limit", s.FramesRead, i.frames())
	}
}

func TestRegions(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	c := l.clientOf(l.command(),
		pagertest.Region{Size: 1<<20 + 12<<10, Offset: 20 << 10, PageSize: 4 << 10},
		pagertest.Region{Size: 4 << 10, Offset: 12 << 10, PageSize: 4 << 10},
		pagertest.Region{Size: 4 << 20, Offset: testSize - 4<<20, PageSize: 4 << 10})
	if err := c.Hello(pagertest.Hello{Path: l.acquire(i, "a")}); err != nil {
		t.Fatal(err)
	}
	check(t, c, pagertest.Touch{From: 20 << 10, To: 1<<20 + 32<<10, Step: 4 << 10, Seed: 3, Threads: 2, Expect: i.expect()})
	check(t, c, pagertest.Touch{Pages: []int64{12 << 10}, Expect: i.expect()})
	check(t, c, pagertest.Touch{From: testSize - 4<<20, To: testSize, Step: 4 << 10, Seed: 3, Threads: 2, Expect: i.expect()})
}

func TestTwentyFiveForks(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	var group sync.WaitGroup
	for n := range 25 {
		c := l.fork(i, fmt.Sprint(n))
		group.Go(func() {
			if got, err := c.Touch(i.all(int64(n), 1+n%3)); err != nil || len(got.Wrong) > 0 {
				t.Errorf("fork %d: wrong pages %v: %v", n, got.Wrong, err)
			}
		})
	}
	group.Wait()
	if s := l.stats(i); s.FramesRead != i.frames() || s.Connected != 25 || l.Forks(i.dir) != 25 {
		t.Errorf("%+v, %d forks; the image has %d frames, each to be read once", s, l.Forks(i.dir), i.frames())
	}
	for n := range 25 {
		l.release(fmt.Sprint(n))
		if l.Forks(i.dir) != 24-n {
			t.Errorf("%d forks after %d releases", l.Forks(i.dir), n+1)
		}
	}
	l.nothingLeft()
	check(t, l.fork(i, "later"), i.all(1, 1))
}

func TestRemoved(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	c := l.fork(i, "a")
	check(t, c, pagertest.Touch{To: testSize / 2, Step: 4 << 10, Seed: 1, Threads: 4, Expect: i.expect(), Write: false})
	// Touched, not touched, and both; at no window's borders.
	for _, r := range [][2]int64{{1<<20 + 4<<10, 2<<20 + 8<<10}, {testSize - 1<<20, testSize}, {testSize/2 - 12<<10, testSize/2 + 12<<10}} {
		if err := c.Remove(r[0], r[1]-r[0]); err != nil {
			t.Fatal(err)
		}
	}
	check(t, c, i.all(2, 4))
	if err := c.Remove(0, testSize); err != nil {
		t.Fatal(err)
	}
	check(t, c, i.all(3, 4))
}

// Each page is given back while its neighbours are touched by other threads: what is
// put around those must not bring it back.
func TestRemovedAmongNeighbours(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	for n, prefetch := range [][]Range{nil, {{0, testSize}}} {
		path, err := l.Acquire(t.Context(), i.dir, Fork{ID: fmt.Sprint(n), UID: os.Geteuid(), Prefetch: prefetch})
		if err != nil {
			t.Fatal(err)
		}
		all := i.all(0, 8)
		all.Return = true
		check(t, l.connect(i, path), all)
	}
}

// Pages are given back by some threads while others read them and their neighbours.
// Whoever looks at one that was given back sees zeros, then and later.
func TestRemovedUnderReaders(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	for n := range 9 {
		c := l.fork(i, fmt.Sprint(n))
		wrong, err := c.Give(pagertest.Giving{To: testSize, Givers: 8, Readers: n % 3, Expect: i.expect()})
		if err != nil || len(wrong) > 0 {
			t.Fatalf("pages with wrong bytes: %v (%v)", wrong, err)
		}
		c.Close()
	}
}

// Pages are given back while others, and prefetching, put pages in.
func TestRemovedMeanwhile(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: os.Geteuid(), Prefetch: []Range{{0, testSize}}})
	if err != nil {
		t.Fatal(err)
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	for n := range int64(64) {
		at := n * (testSize / 64)
		if err := c.Remove(at, testSize/128); err != nil {
			t.Fatal(err)
		}
		check(t, c, pagertest.Touch{From: at, To: at + testSize/64, Step: 4 << 10, Threads: 4, Expect: i.expect()})
	}
	check(t, c, i.all(3, 4))
}

func TestPrefetch(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	list := []Range{{testSize / 2, testSize / 2}, {-5, 3}, {testSize, 1 << 40}, {4096, 0}, {1, testSize/2 - 1}}
	path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: os.Geteuid(), Prefetch: list})
	if err != nil {
		t.Fatal(err)
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	l.until("prefetching is over", func() bool { return l.stats(i).Prefetched == testSize/FaultAround })
	check(t, c, i.all(1, 4))
	if s := l.stats(i); s.Faults != 0 {
		t.Errorf("%d faults on prefetched pages", s.Faults)
	}
}

func TestTouched(t *testing.T) {
	l, i := newLab(t), newImage(t, 64<<20, block.WriterOptions{})
	c := l.fork(i, "a")
	var want []Range
	var pages []int64
	for n := range int64(700) { // more than one packet of them
		at := (n * 37 % 1024) * FaultAround
		want = append(want, Range{at, FaultAround})
		pages = append(pages, at+n%16*4096, at)
	}
	check(t, c, pagertest.Touch{Pages: pages, Expect: i.expect()})
	got, err := l.Touched(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("touched (-want +got):\n%s", diff)
	}
	if _, err := l.Touched(t.Context(), "b"); err == nil {
		t.Error("no error for an unknown fork")
	}
}

// One that never stops and one that never begins.
func TestGreedyAndIdle(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	idle, greedy, other := l.fork(i, "idle"), l.fork(i, "greedy"), l.fork(i, "other")
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for n := int64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := greedy.Touch(pagertest.Touch{To: testSize, Step: 4 << 10, Seed: n, Threads: 8}); err != nil {
				t.Error(err)
				return
			}
			if err := greedy.Remove(0, testSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	check(t, other, i.all(1, 2))
	close(stop)
	group.Wait()
	l.release("idle")
	l.dies(idle)
	check(t, greedy, pagertest.Touch{To: testSize, Step: 4 << 10, Expect: i.expect()})
}

func TestHugePages(t *testing.T) {
	reserveHugePages(t, 8)
	for name, o := range map[string]block.WriterOptions{"huge blocks": {BlockSize: 2 << 20}, "small blocks": {}, "huge frames": {FrameSize: 4 << 20}} {
		t.Run(name, func(t *testing.T) {
			l, i := newLab(t), newImage(t, 16<<20, o)
			c := l.clientOf(l.command(),
				pagertest.Region{Size: 2 << 20, Offset: 12 << 20, PageSize: 2 << 20}, pagertest.Region{Size: 8 << 20, Offset: 2 << 20, PageSize: 2 << 20})
			if err := c.Hello(pagertest.Hello{Path: l.acquire(i, "a")}); err != nil {
				t.Fatal(err)
			}
			check(t, c, pagertest.Touch{From: 2 << 20, To: 10 << 20, Step: 4 << 10, Seed: 1, Threads: 3, Expect: i.expect()})
			check(t, c, pagertest.Touch{From: 12 << 20, To: 14 << 20, Step: 4 << 10, Expect: i.expect()})
			touched, err := l.Touched(t.Context(), "a")
			if err != nil || len(touched) != 5 || slices.ContainsFunc(touched, func(r Range) bool { return r.Length != 2<<20 || r.Offset%(2<<20) != 0 }) {
				t.Errorf("touched %v: %v", touched, err)
			}
			if err := c.Remove(4<<20, 4<<20); err != nil {
				t.Fatal(err)
			}
			check(t, c, pagertest.Touch{From: 2 << 20, To: 10 << 20, Step: 4 << 10, Seed: 1, Threads: 3, Expect: i.expect()})
		})
	}
}

// reserveHugePages has the kernel keep some until the test is over.
func reserveHugePages(t *testing.T, n int) {
	t.Helper()
	const path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"
	before, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(fmt.Sprint(n)), 0o600)
	}
	if err != nil {
		t.Skipf("this machine's huge pages can't be had (root reserves them): %v", err)
	}
	t.Cleanup(func() { os.WriteFile(path, before, 0o600) })
}
