package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Config is how a Tracker works.
type Config struct {
	// Command is the program and the arguments of a pager process, whose body is
	// Serve on its standard input and output. It logs to standard error, which it
	// shares with this process.
	Command []string
	// StateDir keeps a note of each pager, for a Tracker in the place of this one.
	// It may lie as deep as it likes.
	StateDir string
	// TempDir is where the directories with sockets are made; the system's
	// temporary directory when empty. Only a short path leaves room for sockets.
	TempDir string
	// CacheBytes bounds the frames that a pager keeps; 256 MiB when 0.
	CacheBytes int64
	// PageTimeout is how long a page may take from the image, with all attempts,
	// before its machine is killed; a minute when 0.
	PageTimeout time.Duration
	// OrphanGrace is how long a pager stays that has neither a Tracker nor a machine; a
	// minute when 0.
	OrphanGrace time.Duration
	// Failed hears why a fork can't be served any more. Its machine, if it had
	// connected, has been killed, and one that connects later finds nobody: it is to
	// be ended. The fork is still to be released. Failed may be called from any
	// goroutine, and may call the Tracker. May be nil.
	Failed func(forkID string, err error)
	// Log hears what is no error of a caller. May be nil.
	Log *slog.Logger
}

const (
	defaultCacheBytes  = 256 << 20
	defaultPageTimeout = time.Minute
	defaultOrphanGrace = time.Minute
)

// Fork is a machine to be. What it gives back while it runs, as by a balloon, reads
// as zeros from then on.
type Fork struct {
	ID  string // not empty; unique among all forks of a Tracker
	UID int    // the user that its VMM runs as: only that may connect
	// Prefetch is what is put into its memory as soon as it connects, in this order
	// and without being asked for: parts of the image, at most 1,048,576.
	Prefetch []Range
}

// Tracker runs the pagers of a host's templates and counts their forks. Its
// methods may be called concurrently.
type Tracker struct {
	c Config

	mu      sync.Mutex
	pagers  map[string]*pager // by template
	forks   map[string]*claim // by fork
	closing bool
}

// claim is one fork's hold on a pager. What changes is guarded by the Tracker's lock.
type claim struct {
	fork  Fork
	pager *pager
	ready chan struct{} // closed when path or err is set
	path  string
	err   error

	process *process // that has connected; nil before
	started uint64   // when that did, in clock ticks
	failed  bool     // Failed has heard of it
}

// NewTracker returns a Tracker without pagers. Call Adopt before anything else
// where another may have run with the same StateDir.
func NewTracker(c Config) (*Tracker, error) {
	if len(c.Command) == 0 || c.StateDir == "" {
		return nil, errors.New("a pager tracker needs a command and a directory for its notes")
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	if c.PageTimeout == 0 {
		c.PageTimeout = defaultPageTimeout
	}
	if c.OrphanGrace == 0 {
		c.OrphanGrace = defaultOrphanGrace
	}
	if c.TempDir == "" {
		c.TempDir = os.TempDir()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making room for notes of pagers: %w", err)
	}
	return &Tracker{c: c, pagers: map[string]*pager{}, forks: map[string]*claim{}}, nil
}

// Acquire returns the path of the unix socket on which a fork's memory is served,
// shorter than 108 bytes, and starts the template's pager if it has none. Acquired
// again with the same template, the fork has the same socket; it serves one
// machine, once. The pager asks for the template's image by its id.
//
// A pager that can't start, or can't take on its first fork, is gone again when
// Acquire returns the error.
func (t *Tracker) Acquire(ctx context.Context, templateID string, f Fork) (string, error) {
	if templateID == "" || f.ID == "" {
		return "", errors.New("serving memory: the ids of template and fork must not be empty")
	}
	if f.UID < 0 {
		return "", fmt.Errorf("serving memory to fork %s: there is no user %d", f.ID, f.UID)
	}
	c, first, err := t.claim(templateID, f)
	if err != nil {
		return "", err
	}
	if first {
		path, err := c.pager.register(ctx, f)
		t.mu.Lock()
		c.path, c.err = path, err
		close(c.ready)
		t.mu.Unlock()
		if err != nil {
			err = fmt.Errorf("serving the memory of template %s to fork %s: %w", templateID, f.ID, err)
			return "", errors.Join(err, t.letGo(c))
		}
		c.pager.note()
		return path, nil
	}
	select {
	case <-c.ready:
		return c.path, c.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// claim counts a fork, so that from here on no release of others ends its pager.
// The second result tells whether it was not counted before.
func (t *Tracker) claim(templateID string, f Fork) (*claim, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.forks[f.ID]; c != nil {
		if c.pager.template != templateID {
			return nil, false, fmt.Errorf("fork %s is one of template %s, not of %s", f.ID, c.pager.template, templateID)
		}
		return c, false, nil
	}
	if t.closing {
		return nil, false, errors.New("serving memory: all pagers are being closed")
	}
	p := t.pagers[templateID]
	if p == nil {
		p = newPager(t, templateID)
		t.pagers[templateID] = p
		go p.start()
	}
	c := &claim{fork: f, pager: p, ready: make(chan struct{})}
	t.forks[f.ID], p.claims[f.ID] = c, c
	return c, true, nil
}

// Release ends the serving of a fork, and the pager with its last one. A machine
// that is still there is killed. Of a fork that is not known there is nothing to
// release.
func (t *Tracker) Release(forkID string) error {
	t.mu.Lock()
	c := t.forks[forkID]
	t.mu.Unlock()
	if c == nil {
		return nil
	}
	<-c.ready
	if c.err != nil {
		return nil // Acquire lets go of it
	}
	return t.letGo(c)
}

// letGo takes a fork out, once, and closes a pager that has none left.
func (t *Tracker) letGo(c *claim) error {
	t.mu.Lock()
	if t.forks[c.fork.ID] != c {
		t.mu.Unlock()
		return nil
	}
	delete(t.forks, c.fork.ID)
	delete(c.pager.claims, c.fork.ID)
	last := len(c.pager.claims) == 0
	if last && t.pagers[c.pager.template] == c.pager {
		delete(t.pagers, c.pager.template)
	}
	process := c.process
	c.process = nil
	t.mu.Unlock()
	var err error
	if last {
		err = c.pager.close()
	} else {
		err = c.pager.release(c)
	}
	if process != nil { // the pager has ended it, unless that is in trouble itself
		err = errors.Join(err, process.kill())
		process.close()
	}
	return err
}

// CloseAll releases all forks, killing machines that are still there, and returns
// the first error. The Tracker can't be used any more.
func (t *Tracker) CloseAll() error {
	t.mu.Lock()
	t.closing = true
	ids := make([]string, 0, len(t.forks))
	for id := range t.forks {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	var first error
	for _, id := range ids {
		if err := t.Release(id); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Forks is how many forks of a template are counted. It is counted anew each time.
func (t *Tracker) Forks(templateID string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, c := range t.forks {
		if c.pager.template == templateID {
			n++
		}
	}
	return n
}

// Touched returns what a fork's machine has touched so far, in the order of the
// first faults, each FaultAround or a page long: what a prefetch list is made of. A
// fork that was given such a list faults only on what is not on it.
func (t *Tracker) Touched(ctx context.Context, forkID string) ([]Range, error) {
	t.mu.Lock()
	c := t.forks[forkID]
	t.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("asking what was touched: there is no fork %s", forkID)
	}
	var all []Range
	for {
		a, err := c.pager.ask(ctx, message{Op: opTouched, Fork: forkID, From: len(all)})
		if err != nil {
			return nil, fmt.Errorf("asking what fork %s has touched: %w", forkID, err)
		}
		all = append(all, a.Ranges...)
		if !a.More || len(a.Ranges) == 0 {
			return all, nil
		}
	}
}

// Stats returns what a template's pager has done; of one without a pager nothing.
func (t *Tracker) Stats(ctx context.Context, templateID string) (Stats, error) {
	t.mu.Lock()
	p := t.pagers[templateID]
	t.mu.Unlock()
	if p == nil {
		return Stats{}, nil
	}
	a, err := p.ask(ctx, message{Op: opStats})
	if err != nil || a.Stats == nil {
		return Stats{}, fmt.Errorf("asking the pager of template %s: %w", templateID, err)
	}
	return *a.Stats, nil
}
