package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandboxapi/client"
)

// manyArgs asks for at least one argument and says of what.
func manyArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageErrorf("%s takes %s (see `%s --help`)", cmd.CommandPath(), what, cmd.CommandPath())
		}
		return nil
	}
}

func (a *app) killCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "kill SANDBOX...",
		Short: "End sandboxes, running or paused",
		Long: `Ends sandboxes of the daemon, and removes what paused ones are kept in. Snapshots that were made of them on purpose stay.

One that belongs to a command, as spore ps shows, ends with that command, which is asked for its end as by an interrupt. --all leaves those alone.`,
		Example: "  spore kill 3fa9 81c0\n  spore kill --all",
		Args: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return usageErrorf("kill takes sandboxes, or --all")
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, a.kill)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all of the daemon's")
	a.daemonFlags(c.Flags())
	return c
}

func (a *app) pauseCommand() *cobra.Command {
	c := &cobra.Command{
		Use:               "pause SANDBOX...",
		Short:             "Let sandboxes of the daemon sleep",
		Long:              "Freezes sandboxes whole, memory and disk, and ends their machines. They keep their ids, cost nothing but disk, and go on when they are woken.",
		Args:              manyArgs("sandboxes"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, a.named(func(ctx context.Context, c *client.Client, id string) error { return c.Pause(ctx, id) }))
		},
	}
	a.daemonFlags(c.Flags())
	return c
}

func (a *app) wakeCommand() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:               "wake SANDBOX...",
		Short:             "Wake paused sandboxes of the daemon",
		Long:              "Wakes sandboxes that were paused. One that runs gets more time.",
		Args:              manyArgs("sandboxes"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTimeout(timeout); err != nil {
				return err
			}
			return a.each(cmd.Context(), args, a.named(func(ctx context.Context, c *client.Client, id string) error {
				_, err := c.Connect(ctx, id, timeout)
				return err
			}))
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long they live from now on (default the daemon's)")
	a.daemonFlags(c.Flags())
	return c
}

// doing does something to the sandbox that ref names, and returns its id. failed is why there is no daemon, which only one that runs alone does without.
type doing func(ctx context.Context, c *client.Client, failed error, ref string) (id string, err error)

// named is a doing to the daemon's sandboxes alone.
func (a *app) named(do func(ctx context.Context, c *client.Client, id string) error) doing {
	return func(ctx context.Context, c *client.Client, failed error, ref string) (string, error) {
		id, err := a.find(ctx, c, failed, ref)
		if err != nil {
			return "", err
		}
		return id, do(ctx, c, id)
	}
}

// each does something to each of the sandboxes that refs name, or to all of the daemon's if there are none, and prints the ids of those for which it went well.
func (a *app) each(ctx context.Context, refs []string, do doing) error {
	c, failed := a.daemon(ctx)
	if len(refs) == 0 {
		if failed != nil {
			return failed
		}
		all, err := c.List(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			refs = append(refs, s.SandboxID)
		}
	}
	done, errs := []sandboxID{}, []error{}
	for _, ref := range refs {
		id, err := do(ctx, c, failed, ref)
		if failed != nil && errors.Is(err, failed) && slices.ContainsFunc(errs, func(before error) bool { return errors.Is(before, failed) }) {
			continue // that there is no daemon is said once, for all that only one would know
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, sandboxID{id})
		if a.json {
			continue
		}
		if err := a.println(id); err != nil {
			return err
		}
	}
	if a.json {
		errs = append(errs, a.printJSON(done))
	}
	return errors.Join(errs...)
}

// sandboxID is a sandbox as --json shows it where there is no more to tell; ps and fork, which tell more, call the id the same.
type sandboxID struct {
	ID string `json:"sandboxID"`
}

// printSandbox writes the id of a sandbox that stays in the daemon.
func (a *app) printSandbox(id string) error {
	if a.json {
		return a.printJSON(sandboxID{id})
	}
	return a.println(id)
}

// checkTimeout refuses what the daemon can't be asked for.
func checkTimeout(d time.Duration) error {
	if d < 0 || d%time.Second != 0 {
		return usageErrorf("--timeout %v: choose whole seconds", d)
	}
	return nil
}

// pairs reads NAME=VALUE flags.
func pairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, e := range list {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, usageErrorf("%s %q: it is NAME=VALUE", flag, e)
		}
		m[name] = value
	}
	return m, nil
}
