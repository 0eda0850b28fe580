package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network"
)

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestHold stops a machine in memory and lets it go on: nothing of it has run meanwhile, its clock is right, and it is another generation.
func TestHold(t *testing.T) {
	b := shared(t, nil)
	s := b.resume(t, lab.template)
	n := counts(t, s, 0)
	if err := s.Hold(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(within(t)); err == nil || !strings.Contains(err.Error(), "held") {
		t.Errorf("holding twice: %v", err)
	}
	if _, _, err := s.Pause(within(t), PauseSpec{}, NoProgress{}); err == nil || !strings.Contains(err.Error(), "release it") {
		t.Errorf("pausing what is held: %v", err)
	}
	before := cpuTicks(t, s.VMM())
	time.Sleep(time.Second) // its process would count a thousand times
	if spent := cpuTicks(t, s.VMM()) - before; spent > 20 {
		t.Errorf("a held machine used %d ticks of CPU time in a second", spent)
	}
	if err := s.Release(within(t), map[string]string{"ADDED": "by release"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(within(t), nil); err == nil {
		t.Error("released twice")
	}
	counts(t, s, n) // its process goes on
	if got := output(t, s, "echo $ADDED"); got != "by release" {
		t.Errorf("the environment added by the release is %q", got)
	}
	skew, err := clock(within(t), s)
	if err != nil || skew.Abs() > 2*time.Second {
		t.Errorf("the clock is off by %v, %v", skew, err)
	}
	// And it can be frozen as any other.
	pause(t, s, PauseSpec{})
}

// cpuTicks is the processor time that a process has used, in hundredths of a second.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		t.Fatalf("reading %s", stat)
	}
	return user + system
}

// TestPool takes sandboxes of a pool: they are different ones, they were waiting, and the pool makes others.
func TestPool(t *testing.T) {
	b := shared(t, nil)
	var room atomic.Bool
	room.Store(true)
	p := b.NewPool(b.open(t, lab.template), PoolOptions{Size: 2, Warmup: "echo warm > /run/warm", Room: room.Load})
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 2 {
		s, err := p.Take(within(t), nil, network.Policy{})
		if err != nil || s == nil {
			t.Fatalf("took %v, %v", s, err)
		}
		who := output(t, s, "cat /etc/machine-id; cat /proc/sys/kernel/random/uuid")
		if seen[who] {
			t.Errorf("two sandboxes are the same: %s", who)
		}
		seen[who] = true
		if got := output(t, s, "cat /run/warm"); got != "warm" {
			t.Errorf("the warm-up left %q", got)
		}
		counts(t, s, 0)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := p.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	if st := p.Stats(); st.Hits != 2 || st.Misses != 0 || st.Ready != 2 {
		t.Errorf("after two were taken: %+v", st)
	}

	// One that dies while it waits is not handed out.
	p.mu.Lock()
	victim := p.ready[0]
	p.mu.Unlock()
	pidfd, err := unix.PidfdOpen(victim.VMM(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	<-victim.Done()
	s, err := p.Take(within(t), nil, network.Policy{})
	if err != nil || s == nil {
		t.Fatalf("with one dead and one alive: took %v, %v", s, err)
	}
	output(t, s, "true")
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	if err := p.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	// Without room it gives up those that wait, and none is there to take.
	room.Store(false)
	eventually(t, "the pool is drained", func() bool { return p.Stats().Ready == 0 })
	if s, err := p.Take(within(t), nil, network.Policy{}); s != nil || err != nil {
		t.Errorf("a drained pool gave %v, %v", s, err)
	}
	if st := p.Stats(); st.Drained == 0 || st.Misses != 1 || st.Ready != 0 || st.Lost == 0 {
		t.Errorf("after it was drained: %+v", st)
	}
}
