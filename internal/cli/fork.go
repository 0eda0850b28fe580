package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// createsAtOnce is how many requests wait in the daemon at a time: it starts as many machines as it has cores, and lets none wait forever.
const createsAtOnce = 16

// maxForks is how many sandboxes one command may make.
const maxForks = 256

// forkFlags are what fork takes.
type forkFlags struct {
	n          int
	timeout    time.Duration
	autoPause  bool
	autoResume bool
	metadata   []string
	env        []string
}

func (a *app) forkCommand() *cobra.Command {
	var f forkFlags
	c := &cobra.Command{
		Use:   "fork SANDBOX|SNAPSHOT",
		Short: "Make sandboxes in the daemon, from a running one or from a snapshot",
		Long: `Makes sandboxes that go on from where another one is, each as a machine of its own: with its own clock, entropy, host name and machine id. A running
sandbox stands still for the moment in which it is captured, and goes on. A snapshot is forked as often as is asked for.

Prints the ids of the new sandboxes. If some can't be made, the others are there all the same, and the exit code is 1.`,
		Example: `  spore fork py
  spore fork 3fa9 -n 25`,
		Args: exactArgs("one sandbox or snapshot"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, partial string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			sandboxes, _ := a.completeSandboxes(cmd, args, partial)
			snapshots, directive := a.completeSnapshots(cmd, args, partial)
			return append(sandboxes, snapshots...), directive
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.fork(cmd.Context(), args[0], f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.IntVarP(&f.n, "number", "n", 1, "how many")
	flags.DurationVar(&f.timeout, "timeout", 0, "how long they live (default the daemon's)")
	flags.BoolVar(&f.autoPause, "auto-pause", false, "pause one whose time is up, rather than kill it (of a snapshot only: forks of a sandbox do as it does)")
	flags.BoolVar(&f.autoResume, "auto-resume", false, "wake a paused one when a request comes for it (of a snapshot only)")
	flags.StringArrayVarP(&f.metadata, "metadata", "m", nil, "`NAME=VALUE` to find them by (of a snapshot only); may be repeated")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "`NAME=VALUE` for all that runs in them (of a snapshot only); may be repeated")
	a.daemonFlags(flags)
	return c
}

func (a *app) fork(ctx context.Context, ref string, f forkFlags) error {
	if f.n < 1 || f.n > maxForks {
		return usageErrorf("--number %d: choose 1 to %d", f.n, maxForks)
	}
	if err := checkTimeout(f.timeout); err != nil {
		return err
	}
	spec := openapi.NewSandbox{TemplateID: ref, Timeout: openapi.Seconds(f.timeout.Seconds()), AutoPause: f.autoPause}
	spec.AutoResume.Enabled = f.autoResume
	var err error
	if spec.Metadata, err = pairs("--metadata", f.metadata); err != nil {
		return err
	}
	if spec.EnvVars, err = pairs("--env", f.env); err != nil {
		return err
	}
	begin := time.Now()
	c, id, err := a.onSandbox(ctx, ref)
	var forks []openapi.ForkResult
	if noSandbox := err; c != nil && (is[*client.Error](noSandbox) || is[*aloneError](noSandbox)) {
		if forks, err = createAll(ctx, c, f.n, spec); answered(err, http.StatusNotFound) {
			err = errors.Join(noSandbox, err) // it may have been meant as either
		}
	} else if err == nil {
		if f.autoPause || f.autoResume || len(f.metadata) > 0 || len(f.env) > 0 {
			return usageErrorf("forks of a sandbox are as it is: --auto-pause, --auto-resume, --metadata and --env are for forks of a snapshot")
		}
		var report client.ForkReport
		if forks, report, err = c.Fork(ctx, id, f.n, f.timeout); err == nil {
			a.say("it stood still for %.1f ms", report.StoppedMS)
		}
	}
	if err != nil {
		return err
	}
	return a.forked(forks, time.Since(begin))
}

// createAll makes n sandboxes of a snapshot at once. A first failure of all is the error of all.
func createAll(ctx context.Context, c *client.Client, n int, spec openapi.NewSandbox) ([]openapi.ForkResult, error) {
	forks := make([]openapi.ForkResult, n)
	errs := make([]error, n)
	var g errgroup.Group
	g.SetLimit(createsAtOnce)
	for i := range n {
		g.Go(func() error {
			s, err := c.Create(ctx, spec)
			if err != nil {
				errs[i] = err
				forks[i].Error = &openapi.Error{Message: err.Error()}
				return nil
			}
			forks[i].Sandbox = &s
			return nil
		})
	}
	_ = g.Wait() // each says for itself
	for _, err := range errs {
		if err == nil {
			return forks, nil
		}
	}
	return nil, errs[0]
}

// forked prints what came of a fork.
func (a *app) forked(forks []openapi.ForkResult, took time.Duration) error {
	if a.json {
		if err := a.printJSON(forks); err != nil {
			return err
		}
	}
	var failed []error
	for _, k := range forks {
		if k.Sandbox == nil {
			failed = append(failed, errors.New(k.Error.Message))
		} else if !a.json {
			if err := a.println(k.Sandbox.SandboxID); err != nil {
				return err
			}
		}
	}
	made, noun := len(forks)-len(failed), "sandboxes"
	if made == 1 {
		noun = "sandbox"
	}
	a.say("%d %s in %s ms", made, noun, milliseconds(took))
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d forks could not be made: %w", len(failed), len(forks), failed[0])
	}
	return nil
}
