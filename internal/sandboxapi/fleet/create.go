package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// Limits of what a sandbox may be told of itself.
const (
	maxMetadata = 64 << 10 // bytes of names and values
	maxEnv      = 256 << 10
)

// Create makes a sandbox from a template. Its agent has answered when it returns. Errors are of the kinds Invalid, NotFound, Quota and Busy.
func (f *Fleet) Create(ctx context.Context, spec CreateSpec) (Info, error) {
	if err := f.check(&spec); err != nil {
		return Info{}, err
	}
	ref := trimmed(spec.Template)
	id, err := f.resolve(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	name := ref
	if _, err := uuid.Parse(ref); err == nil {
		name = ""
	}
	return f.spawn(ctx, id, name, "", spec)
}

// check refuses what can't be, and fills in what was left out.
func (f *Fleet) check(spec *CreateSpec) error {
	timeout, err := f.timeout(spec.Timeout)
	if err != nil {
		return err
	}
	spec.Timeout = timeout
	switch spec.OnTimeout {
	case "":
		spec.OnTimeout = Kill
	case Kill, Pause:
	default:
		return &Error{Kind: Invalid, Message: fmt.Sprintf("%q is not what can be done with a sandbox whose time is up: choose kill or pause", spec.OnTimeout)}
	}
	if size(spec.Metadata) > maxMetadata {
		return &Error{Kind: Invalid, Message: fmt.Sprintf("metadata of more than %d KiB", maxMetadata>>10)}
	}
	if size(spec.Env) > maxEnv {
		return &Error{Kind: Invalid, Message: fmt.Sprintf("environment of more than %d KiB", maxEnv>>10)}
	}
	return nil
}

// timeout is what a sandbox gets that asks for d.
func (f *Fleet) timeout(d time.Duration) (time.Duration, error) {
	switch {
	case d == 0:
		return min(f.o.DefaultTimeout, f.o.MaxTimeout), nil
	case d < 0:
		return 0, &Error{Kind: Invalid, Message: fmt.Sprintf("a timeout of %v: choose more than nothing", d)}
	case d > f.o.MaxTimeout:
		return 0, &Error{Kind: Invalid, Message: fmt.Sprintf("a timeout of %v: this host allows up to %v", d, f.o.MaxTimeout)}
	}
	return d, nil
}

func size(m map[string]string) int {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	return n
}

// spawn starts a sandbox on a template. parent is the sandbox that it is a fork of, or empty.
func (f *Fleet) spawn(ctx context.Context, id uuid.UUID, name, parent string, spec CreateSpec) (_ Info, err error) {
	begin := time.Now()
	ctx, span := f.o.Tracer.Start(ctx, "create sandbox")
	defer func() { endSpan(span, err) }()
	seat, err := f.admit(spec.Owner)
	if err != nil {
		return Info{}, err
	}
	defer seat.give()
	t, err := f.acquire(ctx, id)
	if err != nil {
		return Info{}, err
	}
	if parent == "" && StateOf(t.snap.Metadata()) != "" {
		err := &Error{Kind: NotFound, Message: fmt.Sprintf("%s is no template: a sandbox sleeps in it, or has forks that stand on it", id), Hint: "fork that sandbox instead"}
		return Info{}, errors.Join(err, f.letGo(t))
	}
	policy, err := spec.Reach.policy(t.snap.Metadata().Net)
	if err != nil {
		return Info{}, errors.Join(err, f.letGo(t))
	}
	live, pooled, err := f.obtain(ctx, t, spec.Env, policy)
	if err != nil {
		return Info{}, errors.Join(f.startError(ctx, err), f.letGo(t))
	}
	meta := t.snap.Metadata()
	e := newEntry(record{Info: Info{
		ID: hexID(live.ID()), Template: id, Name: name, Parent: parent, Owner: spec.Owner,
		Started: begin.UTC(), End: time.Now().Add(spec.Timeout).UTC(), Timeout: spec.Timeout,
		OnTimeout: spec.OnTimeout, AutoResume: spec.AutoResume, Secure: !spec.Insecure, Private: spec.Private, Metadata: maps.Clone(spec.Metadata),
		CPUs: meta.VCPUs, MemoryBytes: meta.MemoryBytes, DiskBytes: meta.DiskBytes, AgentVersion: meta.Agent, Net: meta.Net, Reach: policy,
		Snapshot: id,
	}})
	_ = e.take(ctx) // it is new: the turn is there
	defer e.give()
	f.giveTokens(e)
	if err := f.enter(e); err != nil {
		return Info{}, errors.Join(err, live.Close(), f.letGo(t))
	}
	f.runs(e, seat, live, t, pooled, begin)
	f.saveSoon(ctx, e)
	f.scribe.write(func() {
		if err := f.db.spawned(context.WithoutCancel(ctx), id); err != nil {
			f.o.Log.Warn("counting a sandbox of a template", "snapshot", id, "error", err)
		}
	})
	f.phases(ctx, live, begin, pooled)
	f.note(e.id, slog.LevelInfo, "created", map[string]string{"template": id.String(), "pooled": fmt.Sprint(pooled), "took": time.Since(begin).Round(time.Microsecond).String()})
	return e.get(), nil
}

// enter makes a sandbox known, unless the fleet is about to end.
func (f *Fleet) enter(e *entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return errClosing()
	}
	f.entries[e.id] = e
	return nil
}

// policy is what r means for a network of the given kind.
func (r Reach) policy(net string) (network.Policy, error) {
	deny := r.Deny
	if r.Offline {
		deny = append(slices.Clone(deny), "0.0.0.0/0")
	}
	policy, err := network.ParsePolicy(r.Allow, deny)
	if err != nil {
		return policy, &Error{Kind: Invalid, Message: err.Error()}
	}
	switch {
	case policy.IsZero(), net == string(vmm.NetTap):
		return policy, nil
	case net != string(vmm.NetUser) && len(r.Allow) == 0: // it reaches nothing anyway
		return network.Policy{}, nil
	}
	return policy, &Error{Kind: Invalid, Message: "the network of this template is not one whose traffic is filtered", Hint: "make the template with --net tap, or with --net none"}
}

// obtain returns a running machine of a template: one that waited, or one that is woken now.
func (f *Fleet) obtain(ctx context.Context, t *template, env map[string]string, policy network.Policy) (live *sandbox.Sandbox, pooled bool, err error) {
	if p := f.poolOf(t.id); p != nil {
		if live, err := p.pool.Take(ctx, env, policy); live != nil || err != nil {
			return live, true, err
		}
	}
	live, err = f.resume(ctx, t, sandbox.ResumeOptions{Env: env, Policy: policy})
	return live, false, err
}

// resume wakes a machine when its turn to start has come.
func (f *Fleet) resume(ctx context.Context, t *template, o sandbox.ResumeOptions) (*sandbox.Sandbox, error) {
	if err := f.room(); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, f.o.StartWait)
	err := f.starts.Acquire(waiting, 1)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &Error{Kind: Busy, Message: fmt.Sprintf("too many sandboxes are starting: none could for %v", f.o.StartWait), Hint: "try again later", Retry: f.o.StartWait}
	}
	defer f.starts.Release(1)
	return f.host.Resume(ctx, t.snap, o, sandbox.NoProgress{})
}

// startError keeps the kinds of errors that have one.
func (f *Fleet) startError(ctx context.Context, err error) error {
	if is[*Error](err) || ctx.Err() != nil {
		return err
	}
	if is[*snapshot.IncompatibleError](err) || is[*sandbox.EngineError](err) {
		return &Error{Kind: Conflict, Message: err.Error(), Hint: "wake it on a host like the one that it was frozen on, or build the template again here"}
	}
	return fmt.Errorf("starting the sandbox: %w", err)
}

// runs makes a machine the life of a sandbox, which counts from here on in the place of the seat. The caller holds the turn, and writes it down.
func (f *Fleet) runs(e *entry, seat *seat, live *sandbox.Sandbox, t *template, pooled bool, begin time.Time) {
	before := e.get()
	e.mu.Lock()
	e.live, e.template = live, t
	e.info.State, e.info.Pooled, e.info.Wake, e.pausing = Running, pooled, time.Since(begin), uuid.Nil
	e.last, e.series = sample{}, nil
	e.timer = time.AfterFunc(time.Until(e.info.End), func() { f.timeUp(e) })
	e.mu.Unlock()
	after := e.get()
	f.mu.Lock()
	seat.giveLocked() // in one step, or others would be refused for a sandbox that counts twice
	f.count(before, -1)
	f.count(after, +1)
	f.mu.Unlock()
	go f.mourn(e, live)
}

// giveTokens gives a sandbox that is new, or was found again, the tokens that its agent and its ports want.
func (f *Fleet) giveTokens(e *entry) {
	if e.info.Secure {
		e.info.Token = f.token("agent", e.id)
	}
	if e.info.Private {
		e.info.Traffic = f.token("traffic", e.id)
	}
}

// token is an access token of a sandbox. It is made from the daemon's secret, and so the same at each asking, and not kept.
func (f *Fleet) token(what, id string) string {
	mac := hmac.New(sha256.New, f.secret)
	mac.Write([]byte(what + " " + id))
	return hex.EncodeToString(mac.Sum(nil))
}

func hexID(id uuid.UUID) string { return hex.EncodeToString(id[:]) }
