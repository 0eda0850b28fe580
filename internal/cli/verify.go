package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

func (a *app) verifyCommand() *cobra.Command {
	var deep bool
	c := &cobra.Command{
		Use:   "verify [SNAPSHOT...]",
		Short: "Read snapshots completely and check every byte",
		Long: `Reads everything that the given snapshots need, the layers of their ancestors too, and checks it against the digests from the metadata down to the last
frame. Without arguments all snapshots of the store are checked. What is damaged is listed, and the exit code is 4.

With --deep a machine is also woken, several times, to see that waking does what it should: a nonce that was left in its memory and its uptime tell that it was
continued and not booted; two wakes differ in random numbers, UUIDs, machine id and host name; the clock is right; and frozen again at once it has hardly changed.
A child of the snapshot is made for that, and removed. With --jail the machines are woken in Firecracker's jailer.`,
		ValidArgsFunction: a.completeSnapshots,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args, deep) },
	}
	c.Flags().BoolVar(&deep, "deep", false, "also wake machines and see that they are what they were")
	a.jailFlags(c.Flags())
	a.trustFlags(c.Flags())
	return c
}

// verified is one snapshot's result as --json shows it.
type verified struct {
	ID      string   `json:"id"`
	OK      bool     `json:"ok"`
	Bytes   int64    `json:"bytes"` // disk and memory, holes left out
	Seconds float64  `json:"seconds"`
	Errors  []string `json:"errors"`

	Checks []sandbox.Check `json:"checks,omitempty"` // of --deep
}

func (a *app) verify(ctx context.Context, refs []string, deep bool) error {
	if _, err := a.jailed(); err != nil { // before much is read
		return err
	}
	if a.jail.on && !deep {
		return usageErrorf("--jail is for the machines that --deep wakes")
	}
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	results, damage := []verified{}, []error{}
	if len(refs) == 0 {
		infos, err := repo.List(ctx, func(id uuid.UUID, err error) {
			results = append(results, verified{ID: id.String(), Errors: []string{err.Error()}})
			damage = append(damage, err)
		})
		if err != nil {
			return err
		}
		for _, i := range infos {
			refs = append(refs, i.ID.String())
		}
	}
	for _, ref := range refs {
		v, err := a.verifyOne(ctx, repo, ref)
		if err == nil && deep {
			err = a.canary(ctx, &v)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
		case exitCode(err) == exitCorrupt, is[*canaryError](err):
			damage = append(damage, err)
		default:
			return err
		}
		results = append(results, v)
	}
	return a.verifyReport(results, damage)
}

func (a *app) verifyOne(ctx context.Context, repo *snapshot.Repo, ref string) (verified, error) {
	v, begin := verified{ID: ref, Errors: []string{}}, time.Now()
	snap, err := repo.Open(ctx, ref)
	if err == nil {
		defer snap.Close()
		v.ID = snap.ID().String()
		progress := a.show()
		progress.Phase("verify")
		err = repo.Verify(ctx, snap, func(done, total int64) {
			v.Bytes = total
			progress.Advance(done, total)
		})
		progress.stop()
	}
	v.OK, v.Seconds = err == nil, time.Since(begin).Seconds()
	for _, e := range flatten(err) {
		v.Errors = append(v.Errors, e.Error())
	}
	return v, err
}

// canary wakes what was verified.
func (a *app) canary(ctx context.Context, v *verified) error {
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	snap, err := host.Snapshots.Open(ctx, v.ID)
	if err != nil {
		return err
	}
	defer snap.Close()
	progress := a.showSlow()
	v.Checks, err = host.Canary(ctx, snap, progress)
	progress.stop()
	if err != nil {
		return err
	}
	for _, c := range v.Checks {
		if !c.OK {
			v.OK = false
			v.Errors = append(v.Errors, fmt.Sprintf("not so: %s: %s", c.Name, c.Detail))
		}
	}
	if !v.OK {
		return &canaryError{v.ID}
	}
	return nil
}

// canaryError says that a machine did not wake as it should.
type canaryError struct{ id string }

func (e *canaryError) Error() string {
	return fmt.Sprintf("snapshot %s does not wake as it should", e.id)
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// damagedError is the outcome of a verification that found something.
type damagedError struct {
	damaged, of int
	err         error
}

func (e *damagedError) Error() string {
	what := "are damaged"
	if is[*canaryError](e.err) {
		what = "are damaged, or do not wake as they should"
	}
	return fmt.Sprintf("%d of %d snapshots %s", e.damaged, e.of, what)
}

func (e *damagedError) Unwrap() error { return e.err }

func (a *app) verifyReport(results []verified, damage []error) error {
	var err error
	if a.json {
		err = a.printJSON(results)
	} else {
		for _, v := range results {
			if v.OK {
				fmt.Fprintf(a.Out, "%s  ok  %s in %.1f s\n", v.ID, formatBytes(v.Bytes), v.Seconds)
				for _, c := range v.Checks {
					fmt.Fprintf(a.Out, "  %s: %s\n", c.Name, c.Detail)
				}
				continue
			}
			state := "DAMAGED"
			if len(v.Checks) > 0 { // all that it consists of is whole
				state = "WAKES WRONG"
			}
			fmt.Fprintf(a.Out, "%s  %s\n", v.ID, state)
			for _, e := range v.Errors {
				fmt.Fprintf(a.Out, "  %s\n", e)
			}
		}
	}
	if err == nil && len(damage) > 0 {
		err = &damagedError{len(damage), len(results), errors.Join(damage...)}
	}
	return err
}
