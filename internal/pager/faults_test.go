package pager

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
)

// touchUntilDead has a client read everything and waits for its end.
func (l *lab) touchUntilDead(c *pagertest.Client, touch pagertest.Touch) {
	l.Helper()
	if got, err := c.Touch(touch); err == nil {
		l.Errorf("all pages could be read; wrong ones: %v", got.Wrong)
	} else if err != pagertest.ErrDead {
		l.Error(err)
	}
	l.dies(c)
}

func TestSourceFails(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	i.setFaults(t, faults{FailAfter: 20})
	c, idle := l.fork(i, "a"), l.fork(i, "idle")
	l.touchUntilDead(c, i.all(1, 4))
	l.fails("a", "after 4 attempts: the disk is on fire")
	l.until("the pager has let go of the dead machine", func() bool { return l.stats(i).Connected == 1 })
	l.touchUntilDead(idle, i.all(1, 1)) // only now does it need what can't be had
	l.fails("idle", "on fire")
}

func TestSourceFailsForATime(t *testing.T) {
	l, i := newLab(t), newImage(t, 1<<20, block.WriterOptions{})
	i.setFaults(t, faults{FailTimes: readAttempts - 1})
	check(t, l.fork(i, "a"), i.all(1, 4))
}

func TestSourceIsSlow(t *testing.T) {
	l, i := newLab(t), newImage(t, 1<<20, block.WriterOptions{})
	i.setFaults(t, faults{SlowMillis: 30})
	check(t, l.fork(i, "a"), i.all(1, 4))
}

// Reads that never return; more forks than reads are allowed at once, and more
// pages wanted than the cache has room for.
func TestSourceHangs(t *testing.T) {
	l, i := newLab(t, func(c *Config) { c.PageTimeout, c.CacheBytes = 300*time.Millisecond, 1 }), newImage(t, testSize, block.WriterOptions{})
	i.setFaults(t, faults{Hang: true})
	for n := range 3 {
		id := fmt.Sprint(n)
		l.touchUntilDead(l.fork(i, id), pagertest.Touch{To: testSize, Step: FaultAround, Threads: 100})
		l.fails(id, "has not ended in 300ms")
	}
}

func TestSourceIsDamaged(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	layer := filepath.Join(i.dir, i.header.Layers[0].ID.String())
	data, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	for at := 100; at < len(data); at += block.DefaultFrameSize {
		data[at] ^= 1
	}
	if err := os.WriteFile(layer, data, 0o600); err != nil {
		t.Fatal(err)
	}
	l.touchUntilDead(l.fork(i, "a"), i.all(1, 4))
	var damage *block.CorruptError // known as such in another process
	if err := l.fails("a", "memfile of the test is corrupt"); !errors.As(err, &damage) || damage.Layer != i.header.Layers[0].ID || damage.Length == 0 {
		t.Errorf("the damage is told as %+v", damage)
	}
}

// A prefetch list that can't be read is no reason to end a machine.
func TestPrefetchFails(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	hole := int64(-1)
	for _, r := range i.header.Runs {
		if start := (r.Offset + FaultAround - 1) / FaultAround * FaultAround; r.IsHole() && start+FaultAround <= r.End() {
			hole = start
		}
	}
	if hole < 0 {
		t.Fatal("the image has no hole that is large enough")
	}
	i.setFaults(t, faults{FailAfter: 1})
	path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: os.Geteuid(), Prefetch: []Range{{0, testSize}}})
	if err != nil {
		t.Fatal(err)
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	l.until("reads have failed", func() bool { return l.stats(i).FramesRead == 1 })
	check(t, c, pagertest.Touch{From: hole, To: hole + FaultAround, Step: 4 << 10, Expect: i.expect()})
}

func TestPagerDies(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	clients := map[string]*pagertest.Client{"a": l.fork(i, "a"), "b": l.fork(i, "b")}
	l.until("both have connected", func() bool { return l.stats(i).Connected == 2 })
	l.acquire(i, "late")
	check(t, clients["a"], pagertest.Touch{To: testSize / 2, Step: 4 << 10, Expect: i.expect()})
	l.mu.Lock()
	p := l.pagers[i.dir]
	l.mu.Unlock()
	if err := p.child.kill(); err != nil {
		t.Fatal(err)
	}
	heard := map[string]bool{}
	for range 3 {
		select {
		case f := <-l.failed:
			heard[f.fork] = true
			if !strings.Contains(f.err.Error(), "the process that served the memory of template "+i.dir+" has ended: signal: killed") {
				t.Errorf("fork %s: %v", f.fork, f.err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("only %v have failed", heard)
		}
	}
	for _, c := range clients {
		l.dies(c)
	}
	if !heard["a"] || !heard["b"] || !heard["late"] {
		t.Errorf("failed: %v", heard)
	}
	// Those of before are still to be released, and are no hindrance to new ones.
	check(t, l.fork(i, "c"), i.all(1, 2))
	for _, id := range []string{"a", "b", "late"} {
		l.release(id)
	}
	if l.Forks(i.dir) != 1 {
		t.Errorf("%d forks", l.Forks(i.dir))
	}
}

func TestMachineDies(t *testing.T) {
	l, i := newLab(t), newImage(t, testSize, block.WriterOptions{})
	i.setFaults(t, faults{SlowMillis: 1})
	c, d := l.fork(i, "a"), l.fork(i, "b")
	if _, err := c.StartTouch(i.all(1, 8)); err != nil {
		t.Fatal(err)
	}
	l.until("it faults", func() bool { return l.stats(i).Faults > 3 })
	c.Close()
	l.until("the pager has let go of it", func() bool { return l.stats(i).Connected == 1 })
	check(t, d, i.all(2, 2))
	l.release("a")
	select {
	case f := <-l.failed:
		t.Errorf("fork %s has failed: %v", f.fork, f.err)
	default:
	}
}

// Descriptors run out at every place in turn.
func TestOutOfDescriptors(t *testing.T) {
	i := newImage(t, 1<<20, block.WriterOptions{})
	served, refused := 0, 0
	for n := 1; served < 3; n++ {
		if n > 60 {
			t.Fatal("60 descriptors are not enough")
		}
		l := newLab(t)
		i.setFaults(t, faults{Descriptors: n})
		path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: os.Geteuid()})
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "too many open files") {
				t.Errorf("with %d: %v", n, err)
			}
			if l.Forks(i.dir) != 0 {
				t.Errorf("with %d: a fork is counted that was refused", n)
			}
			l.nothingLeft() // the fresh pager is closed again
			continue
		}
		c := l.client(i)
		_ = c.Hello(pagertest.Hello{Path: path}) // it may be killed before it can answer
		touched := make(chan error, 1)
		go func() {
			_, err := c.Touch(i.all(1, 1))
			touched <- err
		}()
		select {
		case err := <-touched:
			if err == nil {
				served++
				continue
			}
			refused++
			l.dies(c)
			l.fails("a", "")
		case f := <-l.failed: // perhaps it could not even be accepted, so nobody knows it but its owner
			refused++
			if !strings.Contains(f.err.Error(), "too many open files") && !strings.Contains(f.err.Error(), "ulimit -n") {
				t.Errorf("with %d: %v", n, f.err)
			}
			c.Close()
		}
	}
	if refused == 0 {
		t.Error("descriptors never ran out")
	}
	// Forks beyond the limit are refused, those before are served.
	l := newLab(t)
	i.setFaults(t, faults{Descriptors: 30})
	c := l.fork(i, "first")
	check(t, c, pagertest.Touch{To: 512 << 10, Step: 4 << 10, Expect: i.expect()})
	for n := 0; ; n++ {
		_, err := l.Acquire(t.Context(), i.dir, Fork{ID: fmt.Sprint(n), UID: os.Geteuid()})
		if err != nil {
			if !strings.Contains(err.Error(), "too many open files") {
				t.Error(err)
			}
			break
		}
		if n > 60 {
			t.Fatal("more forks than descriptors")
		}
	}
	check(t, c, i.all(2, 2))
	l.release("0")
	l.acquire(i, "again")
}
