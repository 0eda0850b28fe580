package fleet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/semaphore"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/store/flock"
)

// Options configure a fleet. Zero limits are their defaults.
type Options struct {
	Host     *sandbox.Host
	StateDir string // database, secret; belongs to one daemon at a time
	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	Tracer   trace.Tracer          // nil: none

	Pools map[string]PoolSpec // by name or id of the template

	DefaultTimeout time.Duration // of a sandbox that asks for none; 5 minutes
	MaxTimeout     time.Duration // 24 hours
	MaxRunning     int           // of a key; 0: no limit of its own
	MaxPaused      int           // of a key; 0: no limit of its own
	ReserveMemory  int64         // bytes of the host's memory that are left alone; a sixteenth of it
	StartWait      time.Duration // how long a request waits for its turn to start a sandbox; 30 s
	KeepDead       time.Duration // how long a dead sandbox is remembered; 24 hours
}

// PoolSpec says how many sandboxes of a template are to wait.
type PoolSpec struct {
	Size   int
	Warmup string // command line that each runs before it waits
}

// Fleet is the sandboxes of a daemon. Its methods may be called concurrently.
type Fleet struct {
	o       Options
	db      *database
	scribe  *scribe
	lock    *os.File
	secret  []byte // tokens of sandboxes are made from it
	starts  *semaphore.Weighted
	metrics *metrics
	host    *sandbox.Host
	stop    chan struct{}
	tending sync.WaitGroup
	closed  sync.Once

	mu        sync.Mutex
	entries   map[string]*entry
	templates map[uuid.UUID]*template
	pools     map[string]*pool // by what the options call the template
	usage     map[string]*use  // by owner
	closing   bool
}

// use is what an owner has.
type use struct{ running, paused int }

const (
	secretName = "secret"
	lockName   = "lock"
)

// prepareState makes the state folder, which nobody else may read.
func prepareState(dir string) error {
	if dir == "" {
		return errors.New("no folder for the daemon's state is given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	return os.Chmod(dir, 0o700)
}

// Open opens a fleet and finds out what became of its sandboxes while there was no daemon: those that slept sleep, those that ran have died with it.
func Open(ctx context.Context, o Options) (_ *Fleet, err error) {
	o = o.withDefaults()
	if err := prepareState(o.StateDir); err != nil {
		return nil, err
	}
	f := &Fleet{
		o: o, host: o.Host, stop: make(chan struct{}),
		// One start a core: under emulation a start is work for its core from end to end, and more at once only make all of them slow.
		starts:  semaphore.NewWeighted(int64(runtime.NumCPU())),
		entries: map[string]*entry{}, templates: map[uuid.UUID]*template{}, pools: map[string]*pool{}, usage: map[string]*use{},
	}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	if f.lock, err = lockState(o.StateDir); err != nil {
		return nil, err
	}
	if f.db, err = openDatabase(ctx, o.StateDir); err != nil {
		return nil, err
	}
	f.scribe = newScribe()
	if f.secret, err = readSecret(filepath.Join(o.StateDir, secretName)); err != nil {
		return nil, err
	}
	if err := f.recover(ctx); err != nil {
		return nil, fmt.Errorf("finding the sandboxes again: %w", err)
	}
	f.metrics = newMetrics(f, o.Metrics)
	for ref, spec := range o.Pools {
		if err := f.startPool(ctx, ref, spec); err != nil {
			return nil, fmt.Errorf("filling the pool of %s: %w", ref, err)
		}
	}
	f.tending.Go(f.tend)
	return f, nil
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if o.DefaultTimeout <= 0 {
		o.DefaultTimeout = 5 * time.Minute
	}
	if o.MaxTimeout <= 0 {
		o.MaxTimeout = 24 * time.Hour
	}
	if o.StartWait <= 0 {
		o.StartWait = 30 * time.Second
	}
	if o.KeepDead <= 0 {
		o.KeepDead = 24 * time.Hour
	}
	if o.ReserveMemory <= 0 {
		if m, err := hostMemory(); err == nil {
			o.ReserveMemory = m.total / 16
		}
	}
	return o
}

// lockState makes sure that no other daemon has this state.
func lockState(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	if err := flock.Try(lock, flock.Exclusive); err != nil {
		lock.Close()
		if errors.Is(err, flock.ErrHeld) {
			return nil, fmt.Errorf("another daemon has the state folder %s: stop it, or choose another folder by --state", dir)
		}
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	return lock, nil
}

// readSecret reads the daemon's secret, which it makes at its first start.
func readSecret(path string) ([]byte, error) {
	secret, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, 32)
		rand.Read(secret) // never fails, as documented
		err = os.WriteFile(path+".new", secret, 0o600)
		if err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err == nil && len(secret) < 32 {
		err = fmt.Errorf("%s is damaged: remove it; clients of sandboxes that sleep have to connect again", path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the daemon's secret: %w", err)
	}
	return secret, nil
}

// tend looks after what nobody asks for: the dead are forgotten after a while, and pools follow the names of their templates.
func (f *Fleet) tend() {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		gone, err := f.db.forget(ctx, time.Now().Add(-f.o.KeepDead))
		if err != nil {
			f.o.Log.Warn("forgetting the dead", "error", err)
		}
		f.mu.Lock()
		for _, id := range gone {
			delete(f.entries, id)
		}
		f.mu.Unlock()
		f.followPools(ctx)
		cancel()
	}
}

// Ready returns why new sandboxes can't be made now, or nil.
func (f *Fleet) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return errClosing()
	}
	return f.db.db.Ping()
}

func errClosing() error {
	return &Error{Kind: Busy, Message: "the daemon is shutting down", Retry: 10 * time.Second}
}

// Close ends the fleet: what runs is paused or killed, as policy says. If ctx ends before all are paused, the rest is killed.
func (f *Fleet) Close(ctx context.Context, policy Action) error {
	var errs []error
	f.closed.Do(func() {
		f.mu.Lock()
		f.closing = true
		f.mu.Unlock()
		close(f.stop)
		f.tending.Wait()
		errs = append(errs, f.closePools(), f.endAll(ctx, policy))
		errs = append(errs, f.release())
	})
	return errors.Join(errs...)
}

// release gives back what Open has taken.
func (f *Fleet) release() error {
	var errs []error
	if f.metrics != nil {
		f.metrics.unregister()
	}
	if f.scribe != nil {
		f.scribe.close()
	}
	if f.db != nil {
		errs = append(errs, f.db.close())
	}
	if f.lock != nil {
		errs = append(errs, f.lock.Close())
	}
	return errors.Join(errs...)
}

// endAll pauses or kills all that run, a few at a time.
func (f *Fleet) endAll(ctx context.Context, policy Action) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, 2*runtime.NumCPU())
	for _, e := range f.all() {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := f.endOne(ctx, e, policy); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (f *Fleet) endOne(ctx context.Context, e *entry, policy Action) error {
	if err := e.take(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	defer e.give()
	if e.get().State != Running {
		return nil
	}
	if policy == Pause && ctx.Err() == nil {
		err := f.pause(ctx, e)
		if err == nil {
			return nil
		}
		f.note(e.id, slog.LevelError, "could not be paused at the daemon's end, and is killed", map[string]string{"error": err.Error()})
	}
	return f.die(context.WithoutCancel(ctx), e, "killed at the daemon's end")
}
