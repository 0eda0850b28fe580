package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"time"
)

// maxForks is how many sandboxes one request may make.
const maxForks = 1000

// Fork makes n sandboxes that go on from where this one is, each as somebody of its own. A running one stands still while it is captured, and goes on. Each
// fork succeeds or fails for itself; the error is of all of them.
func (f *Fleet) Fork(ctx context.Context, id string, n int, timeout time.Duration, owner string) ([]Fork, ForkReport, error) {
	if n < 1 || n > maxForks {
		return nil, ForkReport{}, &Error{Kind: Invalid, Message: fmt.Sprintf("%d forks: choose 1 to %d", n, maxForks)}
	}
	timeout, err := f.timeout(timeout)
	if err != nil {
		return nil, ForkReport{}, err
	}
	e, err := f.ours(ctx, id)
	if err != nil {
		return nil, ForkReport{}, err
	}
	point, stopped, err := f.capture(ctx, e, nil, purposeFork)
	i := e.get()
	if err != nil {
		e.give()
		return nil, ForkReport{}, err
	}
	// Held open by us until the forks hold it: the sandbox may be killed as soon as its turn is given back.
	t, err := f.acquire(ctx, point)
	e.give()
	if err != nil {
		return nil, ForkReport{}, err
	}
	defer func() { f.letGoAll(context.WithoutCancel(ctx), t) }()
	spec := CreateSpec{Owner: owner, Timeout: timeout, OnTimeout: i.OnTimeout, AutoResume: i.AutoResume, Insecure: !i.Secure, Private: i.Private, Metadata: i.Metadata, Reach: Reach{Allow: texts(i.Reach.Allow), Deny: texts(i.Reach.Deny)}}
	forks := f.spawnAll(ctx, n, func(ctx context.Context) (Info, error) { return f.spawn(ctx, point, i.Name, id, spec) })
	f.note(id, slog.LevelInfo, "forked", map[string]string{"forks": fmt.Sprint(n), "stopped": stopped.Round(time.Microsecond).String()})
	return forks, ForkReport{Snapshot: point, Stopped: stopped}, nil
}

func texts(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// spawnAll makes n sandboxes, as many at once as the cores can start.
func (f *Fleet) spawnAll(ctx context.Context, n int, spawn func(context.Context) (Info, error)) []Fork {
	forks := make([]Fork, n)
	slots := make(chan struct{}, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range forks {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			forks[i].Info, forks[i].Err = spawn(ctx)
		})
	}
	wg.Wait()
	return forks
}
