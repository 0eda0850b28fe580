package cli

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/vmm"
)

// A sandbox that a command has made for itself in the daemon lives no longer than the command: it is given time again and again, and killed at the end. What a
// killed command leaves behind ends when that time is up.
const (
	leaseTime  = 2 * time.Minute
	leaseRenew = 30 * time.Second
	leaseEnd   = 30 * time.Second // for the kill
)

// ownerFlags say whose the machine is that run and resume wake.
type ownerFlags struct {
	alone, detach bool
	timeout       time.Duration
}

func (o *ownerFlags) register(f *pflag.FlagSet) {
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the machine to the daemon, and print its id")
	f.DurationVar(&o.timeout, "timeout", 0, "with --detach: how long it lives (default the daemon's)")
	f.BoolVar(&o.alone, "alone", false, "run the machine in this process, even if a daemon runs")
}

func (o *ownerFlags) check(a *app) error {
	switch {
	case o.detach && a.jail.on:
		return usageErrorf("--detach leaves the machine to the daemon, which has jails for all of its machines or for none: give --jail to spore serve")
	case o.alone && o.detach:
		return usageErrorf("--detach leaves the machine to the daemon, which --alone keeps out of it: choose one")
	case o.timeout != 0 && !o.detach:
		return usageErrorf("--timeout is for a machine that stays: it goes with --detach")
	}
	return checkTimeout(o.timeout)
}

// machine is what run and resume have woken, in this process or in the daemon.
type machine interface {
	attachable
	Command(args []string) guest.Command
	Metadata() *snapshot.Metadata
	Took() time.Duration // from the call to the agent's answer
	Close() error
}

// leased is a sandbox of the daemon's that a command has made for itself.
type leased struct {
	far
	snap   *snapshot.Snapshot
	took   time.Duration
	cancel context.CancelFunc // of the renewals
	kept   bool               // it stays when the command ends
}

// Command implements machine.
func (l *leased) Command(args []string) guest.Command {
	c := l.snap.Metadata().Context
	return guest.Command{Args: args, Env: c.Env, Dir: c.Workdir, User: c.User}
}

// Metadata implements machine.
func (l *leased) Metadata() *snapshot.Metadata { return l.snap.Metadata() }

// Took implements machine.
func (l *leased) Took() time.Duration { return l.took }

// explain implements explainer. Who pauses the sandbox wants it to stay.
func (l *leased) explain(ctx context.Context, err error) error {
	err = l.far.explain(ctx, err)
	l.kept = l.kept || is[*asleep](err)
	return err
}

// Close ends the sandbox, unless it is to stay.
func (l *leased) Close() error {
	l.cancel()
	if l.kept {
		return l.snap.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaseEnd) // whatever has ended us
	defer cancel()
	err := l.client.Kill(ctx, l.id)
	if answered(err, http.StatusNotFound) {
		err = nil // it has ended by itself
	}
	return errors.Join(err, l.snap.Close())
}

// renew gives the sandbox more time until ctx ends.
func (l *leased) renew(ctx context.Context) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = l.client.Refresh(ctx, l.id, leaseTime) // the next one may go better; a sandbox that is gone shows in what is asked of it
		}
	}
}

// daemon returns the daemon of this host, if one runs and knows the snapshot as a template, and by which name to ask it for that: it may have another store.
func (w waker) daemon(ctx context.Context, snap *snapshot.Snapshot) (*client.Client, string, error) {
	accel, _ := vmm.ParseAccel(w.options.Accel) // resume says what is wrong with it
	if w.owner.alone || w.app.jail.on || (accel != vmm.Auto || w.options.NoPrefetch) && !w.owner.detach {
		return nil, "", nil
	}
	c, err := w.app.localDaemon(ctx)
	if is[*noDaemon](err) && !w.owner.detach {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	t, err := c.Template(ctx, snap.ID().String())
	switch {
	case answered(err, http.StatusNotFound) && w.owner.detach:
		return nil, "", &otherStore{snap.ID()}
	case answered(err, http.StatusNotFound):
		return nil, "", nil
	case err != nil:
		return nil, "", err
	case slices.Contains(t.Names, w.ref):
		return c, w.ref, nil // so that it is listed under its name
	}
	return c, snap.ID().String(), nil
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// lease has the daemon make a sandbox for as long as this command needs it. It takes the snapshot over; after an error, too.
func (w waker) lease(ctx context.Context, c *client.Client, template string, snap *snapshot.Snapshot) (*leased, error) {
	begin := time.Now()
	spec := openapi.NewSandbox{TemplateID: template, Timeout: openapi.Seconds(leaseTime.Seconds())}
	if w.owner.detach {
		spec.Timeout = openapi.Seconds(w.owner.timeout.Seconds())
	}
	spec.Network.AllowOut, spec.Network.DenyOut = texts(w.options.Policy.Allow), texts(w.options.Policy.Deny)
	s, err := c.Create(ctx, spec)
	if err != nil {
		return nil, errors.Join(err, snap.Close())
	}
	renewing, cancel := context.WithCancel(ctx)
	l := &leased{far: farSandbox(c, s), snap: snap, took: time.Since(begin), cancel: cancel}
	if !w.owner.detach {
		go l.renew(renewing)
	}
	return l, nil
}

// otherStore says that the daemon can't wake what is to stay with it.
type otherStore struct{ id uuid.UUID }

func (e *otherStore) Error() string {
	return "the daemon has no template " + e.id.String() + ", so no machine of it can stay"
}

// Hint says what to do about it.
func (e *otherStore) Hint() string {
	return "it has another store than this command: name that by --store"
}
