package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// template is a snapshot that running sandboxes stand on. It is opened once for all of them.
type template struct {
	id   uuid.UUID
	once sync.Once
	snap *snapshot.Snapshot
	err  error
	refs int // guarded by Fleet.mu
}

// labels of snapshots that the fleet makes.
const (
	labelSandbox = "spore.sandbox" // id of the sandbox that it is of
	labelPurpose = "spore.purpose" // pause, fork, snapshot
)

// sdkTemplate is the template that the public SDKs ask for by default.
const sdkTemplate = "base"

// sleepName is the name of the snapshot that a paused sandbox is. It keeps that from being collected as garbage.
func sleepName(id string) string { return "sandbox/" + id }

// acquire opens a template, or joins those who have it open.
func (f *Fleet) acquire(ctx context.Context, id uuid.UUID) (*template, error) {
	f.mu.Lock()
	t := f.templates[id]
	if t == nil {
		t = &template{id: id}
		f.templates[id] = t
	}
	t.refs++
	f.mu.Unlock()
	t.once.Do(func() { t.snap, t.err = f.host.Snapshots.OpenID(context.WithoutCancel(ctx), id) })
	if t.err != nil {
		err := t.err
		f.letGo(t)
		if is[*snapshot.NotFoundError](err) {
			return nil, &Error{Kind: NotFound, Message: fmt.Sprintf("there is no template %s", id)}
		}
		if is[*snapshot.UntrustedError](err) {
			return nil, &Error{Kind: Conflict, Message: err.Error(), Hint: "have it signed with a key that the daemon trusts"}
		}
		return nil, err
	}
	return t, nil
}

// letGo closes a template that nobody stands on any more.
func (f *Fleet) letGo(t *template) error {
	f.mu.Lock()
	t.refs--
	last := t.refs == 0
	if last && f.templates[t.id] == t {
		delete(f.templates, t.id)
	}
	f.mu.Unlock()
	if last && t.snap != nil {
		return t.snap.Close()
	}
	return nil
}

// resolve returns the snapshot that a name or id means.
func (f *Fleet) resolve(ctx context.Context, ref string) (uuid.UUID, error) {
	if ref == "" {
		return uuid.Nil, &Error{Kind: Invalid, Message: "no template is named"}
	}
	id, err := f.host.Snapshots.Resolve(ctx, ref)
	switch {
	case is[*snapshot.AmbiguousError](err):
		return uuid.Nil, &Error{Kind: NotFound, Message: err.Error(), Hint: "give all of its id"}
	case is[*snapshot.NotFoundError](err) && ref == sdkTemplate:
		return uuid.Nil, &Error{Kind: NotFound, Message: fmt.Sprintf("there is no template %q, which SDKs ask for when they are told of none", ref), Hint: "name one of yours, or make it this one: spore tag NAME " + sdkTemplate}
	case is[*snapshot.NotFoundError](err):
		return uuid.Nil, &Error{Kind: NotFound, Message: fmt.Sprintf("there is no template %q", ref), Hint: "spore list shows what there is; spore create makes one"}
	}
	return id, err
}

// Templates lists the snapshots that sandboxes can be made from, youngest first. What sandboxes sleep as is not among them.
func (f *Fleet) Templates(ctx context.Context) ([]Template, error) {
	infos, err := f.host.Snapshots.List(ctx, func(id uuid.UUID, err error) {
		f.o.Log.Warn("a snapshot can't be read", "snapshot", id, "error", err)
	})
	if err != nil {
		return nil, err
	}
	f.scribe.flush()
	counts, err := f.db.spawnCounts(ctx)
	if err != nil {
		return nil, err
	}
	list := []Template{}
	for _, i := range infos {
		if isTemplate(i.Metadata) {
			list = append(list, f.describe(i.Metadata, i.Names, counts[i.ID]))
		}
	}
	slices.SortFunc(list, func(a, b Template) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// isTemplate tells whether sandboxes can be made from a snapshot.
func isTemplate(m *snapshot.Metadata) bool { return m.HasMemory() && StateOf(m) == "" }

// Template tells of one. It reads no other, however many there are.
func (f *Fleet) Template(ctx context.Context, ref string) (_ Template, err error) {
	id, err := f.resolve(ctx, ref)
	if err != nil {
		return Template{}, err
	}
	t, err := f.acquire(ctx, id)
	if err != nil {
		return Template{}, err
	}
	defer func() { err = errors.Join(err, f.letGo(t)) }()
	if !isTemplate(t.snap.Metadata()) {
		return Template{}, &Error{Kind: NotFound, Message: fmt.Sprintf("%s is no template: it has a disk but no memory, or a sandbox sleeps in it", ref)}
	}
	all, err := f.host.Snapshots.Names(ctx)
	if err != nil {
		return Template{}, err
	}
	var names []string
	for name, of := range all {
		if of == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	f.scribe.flush()
	counts, err := f.db.spawnCounts(ctx)
	if err != nil {
		return Template{}, err
	}
	return f.describe(t.snap.Metadata(), names, counts[id]), nil
}

func (f *Fleet) describe(m *snapshot.Metadata, names []string, n spawnCount) Template {
	t := Template{
		ID: m.ID, Names: names, CPUs: m.VCPUs, MemoryBytes: m.MemoryBytes, DiskBytes: m.DiskBytes, AgentVersion: m.Agent,
		Created: m.Created, Forks: f.forks(m.ID), Spawned: n.n, LastSpawned: n.last, Parent: m.Parent, Image: m.Image.Ref,
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pools {
		if p.template.id == m.ID {
			st := p.pool.Stats()
			t.Pool, t.PoolSize = st.Ready, st.Size
		}
	}
	return t
}

// forks counts the sandboxes that stand on a template, running or paused. It is counted anew each time: there is no number that could be wrong.
func (f *Fleet) forks(id uuid.UUID) int {
	n := 0
	for _, e := range f.all() {
		if i := e.get(); i.Template == id && i.State != Dead {
			n++
		}
	}
	return n
}

// DeleteTemplate removes a template that no sandbox stands on.
func (f *Fleet) DeleteTemplate(ctx context.Context, ref string) error {
	id, err := f.resolve(ctx, ref)
	if err != nil {
		return err
	}
	if n := f.forks(id); n > 0 {
		return &Error{Kind: Conflict, Message: fmt.Sprintf("%s has %d forks", ref, n), Hint: "kill them first"}
	}
	f.mu.Lock()
	for name, p := range f.pools {
		if p.template.id == id {
			f.mu.Unlock()
			return &Error{Kind: Conflict, Message: fmt.Sprintf("%s has a pool, as %s", ref, name), Hint: "start the daemon without it"}
		}
	}
	f.mu.Unlock()
	_, err = f.host.Snapshots.Remove(ctx, id, false)
	if is[*snapshot.DependentsError](err) || errors.Is(err, store.ErrInUse) {
		return &Error{Kind: Conflict, Message: err.Error(), Hint: "remove what stands on it first"}
	}
	return err
}

// discard removes snapshots that nobody asked for and that a sandbox has left behind, youngest first. One that others stand on stays: nothing names it, so it
// is collected as garbage when they are gone.
func (f *Fleet) discard(ctx context.Context, own []uuid.UUID) {
	for _, id := range slices.Backward(own) {
		_, err := f.host.Snapshots.Remove(ctx, id, false)
		if err != nil && !is[*snapshot.NotFoundError](err) && !is[*snapshot.DependentsError](err) && !errors.Is(err, store.ErrInUse) {
			f.o.Log.Warn("a snapshot could not be removed", "snapshot", id, "error", err)
		}
	}
}

// trimmed is a name as the platform's clients write it: with the tag that they add to all.
func trimmed(ref string) string { return strings.TrimSuffix(ref, ":default") }
