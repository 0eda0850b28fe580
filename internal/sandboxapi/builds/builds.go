// Package builds makes templates for those who ask over HTTP: one after another, from an image or another template and a list of instructions, with files
// that they send along.
//
// What is going on is kept in memory: a daemon that is started anew knows nothing of builds, only of the templates that came of them.
package builds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// Limits of what is asked for and kept.
const (
	maxBuilds  = 256 // that are remembered
	maxWaiting = 16  // of a key's
	maxLogs    = 2000
	maxMessage = 4 << 10 // bytes
	maxSteps   = 500
	deadline   = time.Hour // for one build
)

// Defaults of machines.
const (
	defaultCPUs   = 1
	defaultMemory = 512 // MiB
	diskBytes     = 4 << 30
	memoryUnit    = 2 // MiB: huge pages
)

// Options are what builds are made with. Host and Dir must be set.
type Options struct {
	Host   *sandbox.Host
	Dir    string       // for the files that clients send; what is in it is deleted
	Engine string       // what the templates are for; empty: the host's own
	Net    string       // network of the templates: none, user or tap; empty: none
	Log    *slog.Logger // nil: none
}

// Builds makes templates. Its methods may be called concurrently.
type Builds struct {
	o      Options
	files  *files
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	turn   chan struct{} // held by the build that runs: each takes all that the host has
	wg     sync.WaitGroup

	mu     sync.Mutex
	builds []*Build // oldest first
}

// New returns a maker of templates.
func New(o Options) (*Builds, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f, err := newFiles(o.Dir)
	if err != nil {
		return nil, err
	}
	b := &Builds{o: o, files: f, turn: make(chan struct{}, 1)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Close ends what is under way and deletes the files.
func (b *Builds) Close() error {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.wg.Wait()
	return b.files.close()
}

// Status is how far a build is.
type Status string

// The states, under the names that SDKs know.
const (
	Waiting  Status = "waiting"
	Building Status = "building"
	Ready    Status = "ready"
	Failed   Status = "error"
)

// Machine is what a template is to be like.
type Machine struct {
	Name     string
	Tags     []string
	CPUs     int // 0: the default
	MemoryMB int // 0: the default
	FreeMB   int // of disk, at least
}

// Build is a template in the making. Its id is the template's.
type Build struct {
	ID      uuid.UUID
	Owner   string
	Names   []string
	Created time.Time

	machine Machine

	mu      sync.Mutex
	started bool
	status  Status
	logs    []fleet.LogEntry
	dropped int // of logs, from their beginning
	reason  string
	step    string // that failed: base, the number of an instruction from 1, or finalize
}

// Request registers a build. Nothing happens before Start.
func (b *Builds) Request(owner string, m Machine) (*Build, error) {
	m.CPUs, m.MemoryMB = cmp.Or(m.CPUs, defaultCPUs), cmp.Or(m.MemoryMB, defaultMemory)
	m.MemoryMB += m.MemoryMB % memoryUnit
	build := &Build{ID: uuid.New(), Owner: owner, Names: names(m.Name, m.Tags), Created: time.Now().UTC(), machine: m, status: Waiting}
	for _, name := range build.Names {
		if err := store.CheckName(name); err != nil {
			return nil, invalid("the template's name: %v", err)
		}
		if strings.HasPrefix(name, "sandbox/") {
			return nil, invalid("names below sandbox/ are for what sandboxes sleep in")
		}
	}
	check := b.spec(build)
	check.From = "any"
	if err := check.Check(); err != nil {
		return nil, invalid("%v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.builds) >= maxBuilds {
		i := slices.IndexFunc(b.builds, func(o *Build) bool { return !o.isUnderWay() })
		if i < 0 {
			return nil, &fleet.Error{Kind: fleet.Busy, Message: "too many builds wait", Retry: 10 * time.Second}
		}
		b.builds = slices.Delete(b.builds, i, i+1)
	}
	b.builds = append(b.builds, build)
	return build, nil
}

// names are those that a template gets: its own, and one for each tag. The tag default is the name itself.
func names(name string, tags []string) []string {
	name = strings.TrimSuffix(name, ":default")
	var all []string
	for _, tag := range tags {
		if tag == "default" {
			all = append(all, name)
		} else {
			all = append(all, name+":"+tag)
		}
	}
	if len(all) == 0 {
		all = []string{name}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Get returns a build of the owner's; one without owner sees all.
func (b *Builds) Get(owner string, id string) (*Build, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, build := range b.builds {
		if build.ID.String() == id && (owner == "" || build.Owner == owner) {
			return build, nil
		}
	}
	return nil, &fleet.Error{Kind: fleet.NotFound, Message: fmt.Sprintf("there is no build %.64s", id), Hint: "the daemon remembers builds until it ends"}
}

// Start has a build follow a recipe, in its turn. The error is of the kind Invalid or Conflict; what goes wrong later is in its status.
func (b *Builds) Start(ctx context.Context, build *Build, r Recipe) error {
	spec := b.spec(build)
	plan, err := b.plan(ctx, build.Owner, r, &spec)
	if err != nil {
		return err
	}
	if err := b.admit(build, spec); err != nil {
		plan.remove()
		return err
	}
	go b.run(build, spec, plan)
	return nil
}

// admit marks a build as started, and has Close wait for it.
func (b *Builds) admit(build *Build, spec sandbox.CreateSpec) error {
	if err := spec.Check(); err != nil {
		return invalid("%v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := 0
	for _, other := range b.builds {
		if other.Owner == build.Owner && other.isUnderWay() {
			waiting++
		}
	}
	build.mu.Lock()
	defer build.mu.Unlock()
	switch {
	case build.started:
		return &fleet.Error{Kind: fleet.Conflict, Message: fmt.Sprintf("build %s was started already", build.ID), Hint: "request another one"}
	case waiting >= maxWaiting:
		return &fleet.Error{Kind: fleet.Quota, Message: fmt.Sprintf("%d builds wait or run already", waiting), Hint: "wait for them", Retry: 10 * time.Second}
	case b.ctx.Err() != nil:
		return &fleet.Error{Kind: fleet.Busy, Message: "the daemon is about to end", Retry: 5 * time.Second}
	}
	build.started = true
	b.wg.Add(1)
	return nil
}

// spec is what is known of the machine before there is a recipe.
func (b *Builds) spec(build *Build) sandbox.CreateSpec {
	m := build.machine
	return sandbox.CreateSpec{
		ID: build.ID, Names: build.Names, Arch: runtime.GOARCH, CPUs: m.CPUs, MemoryBytes: int64(m.MemoryMB) << 20,
		DiskBytes: max(diskBytes, int64(m.FreeMB)<<20+diskBytes/2), Engine: b.o.Engine, Net: b.o.Net,
	}
}

// run carries a build out.
func (b *Builds) run(build *Build, spec sandbox.CreateSpec, plan *plan) {
	defer b.wg.Done()
	defer plan.remove()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-b.ctx.Done():
		build.finish(b.ctx.Err(), "base")
		return
	}
	build.set(Building)
	build.log("info", "the build begins", "")
	ctx, cancel := context.WithTimeout(b.ctx, deadline)
	defer cancel()
	snap, err := b.o.Host.Create(ctx, spec, &progress{build: build, plan: plan})
	if err == nil {
		err = snap.Close()
	}
	if err != nil {
		b.o.Log.Info("a build failed", "template", build.ID, "error", err)
	}
	build.finish(err, plan.culprit(err))
}

func invalid(format string, args ...any) error {
	return &fleet.Error{Kind: fleet.Invalid, Message: fmt.Sprintf(format, args...)}
}

// templateOf finds the snapshot to start from. What another key's sandbox sleeps in is no template.
func (b *Builds) templateOf(ctx context.Context, ref string) (string, error) {
	snap, err := b.o.Host.Snapshots.Open(ctx, strings.TrimSuffix(ref, ":default"))
	if missing := (*snapshot.NotFoundError)(nil); errors.As(err, &missing) {
		return "", &fleet.Error{Kind: fleet.NotFound, Message: err.Error()}
	}
	if err != nil {
		return "", err
	}
	defer snap.Close()
	if fleet.StateOf(snap.Metadata()) != "" {
		return "", &fleet.Error{Kind: fleet.NotFound, Message: fmt.Sprintf("%s is no template", ref)}
	}
	return snap.ID().String(), nil
}
