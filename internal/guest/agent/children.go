package agent

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Children tells the processes that the process service waits for itself from
// the orphans that fall to PID 1, so that neither takes the other's exit status.
type Children struct {
	// starting is held shared while a process is made and entered, and alone
	// while an orphan is looked up and reaped: a child that exits at once is
	// never taken for an orphan.
	starting sync.RWMutex

	mu   sync.Mutex
	own  map[int]chan struct{}
	held chan struct{} // closed when processes may be made again; nil: they may
}

// NewChildren returns an empty registry.
func NewChildren() *Children { return &Children{own: map[int]chan struct{}{}} }

// start runs f, which makes a process and returns its pid, and enters the pid.
// While processes are held it waits, until ctx ends.
func (c *Children) start(ctx context.Context, f func() (int, error)) (int, error) {
	for {
		c.starting.RLock()
		c.mu.Lock()
		held := c.held
		c.mu.Unlock()
		if held == nil {
			break
		}
		c.starting.RUnlock()
		select {
		case <-held:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	defer c.starting.RUnlock()
	pid, err := f()
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	c.own[pid] = make(chan struct{})
	c.mu.Unlock()
	return pid, nil
}

// hold returns once no process is being made, and lets none be made until
// release.
//
// A process that is made in a control group which is frozen, or freezes just
// then, does not get as far as its program; until it does, its maker's thread
// stands still and with it a processor of the Go scheduler. On a guest with one
// CPU that is all of the agent, and nobody would be left to thaw the group.
func (c *Children) hold() {
	c.starting.Lock()
	defer c.starting.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = make(chan struct{})
	}
}

// release ends a hold.
func (c *Children) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		close(c.held)
		c.held = nil
	}
}

// reaped says that the process service has collected pid.
func (c *Children) reaped(pid int) {
	c.mu.Lock()
	done := c.own[pid]
	delete(c.own, pid)
	c.mu.Unlock()
	if done != nil {
		close(done)
	}
}

// owner returns a channel that is closed once the process service has reaped
// pid, or nil if pid is not its concern.
func (c *Children) owner(pid int) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.own[pid]
}

// ReapOrphans collects ended processes that nobody waits for until ctx ends.
// PID 1 runs it; it is the only caller of wait that names no process.
func (c *Children) ReapOrphans(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	for {
		c.sweep(ctx)
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
	}
}

// sweep reaps every orphan that is a zombie now.
func (c *Children) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		done, more := c.reapOne()
		if !more {
			return
		}
		if done == nil {
			continue
		}
		// The kernel shows one zombie at a time. This one is being collected
		// by its owner; those behind it show up afterwards.
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// reapOne looks at the first zombie: it reaps an orphan, and returns the
// channel to wait on for a process that has an owner.
func (c *Children) reapOne() (done <-chan struct{}, more bool) {
	c.starting.Lock()
	defer c.starting.Unlock()
	pid, err := firstZombie()
	if err != nil || pid == 0 {
		return nil, false
	}
	if done := c.owner(pid); done != nil {
		return done, true
	}
	_, err = retryEINTR(func() (int, error) { return unix.Wait4(pid, nil, unix.WNOHANG, nil) })
	return nil, err == nil || errors.Is(err, unix.ECHILD)
}

// firstZombie returns a child that has ended and was not reaped, 0 for none.
func firstZombie() (int, error) {
	var info siginfoChild
	_, err := retryEINTR(func() (int, error) {
		return 0, waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	})
	return int(info.pid), err
}

func retryEINTR[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
