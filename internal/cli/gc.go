package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/snapshot"
)

func (a *app) gcCommand() *cobra.Command {
	var remove bool
	grace := snapshot.DefaultGrace
	c := &cobra.Command{
		Use:   "gc",
		Short: "Find snapshots that nothing leads to, and with --yes remove them",
		Long: `Lists the snapshots that nothing leads to and, with --yes, removes them. What leads to a snapshot is a name, a running machine, an unfinished snapshot that builds
upon it, or a snapshot to which something leads and which needs its data. What is younger than --grace is left alone: its maker may not have named it yet.

Other commands may work on the store meanwhile: before each removal it is looked again whether something leads there by now. What interrupted
copies and uploads left before the grace period is removed too.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if grace < 0 {
				return usageErrorf("--grace %v is negative", grace)
			}
			return a.gc(cmd.Context(), grace, remove)
		},
	}
	c.Flags().BoolVarP(&remove, "yes", "y", false, "remove them; without it they are only listed")
	c.Flags().DurationVar(&grace, "grace", grace, "leave alone what is younger than this")
	return c
}

// collected is the result as --json shows it.
type collected struct {
	DryRun    bool      `json:"dry_run"`
	Snapshots []garbage `json:"snapshots"`
	Bytes     int64     `json:"bytes"` // that were freed or, in a dry run, would be
	Swept     int64     `json:"swept"` // bytes that writers who died had left
}

type garbage struct {
	listed
	Removed bool   `json:"removed"`
	Error   string `json:"error,omitempty"`
}

func (a *app) gc(ctx context.Context, grace time.Duration, remove bool) error {
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	found, swept, err := repo.GC(ctx, grace, remove)
	if err != nil && len(found) == 0 {
		return err
	}
	result := collected{DryRun: !remove, Snapshots: []garbage{}, Swept: swept}
	failures := []error{err}
	for _, g := range found {
		shown := garbage{listed: listedOf(g.Info), Removed: g.Removed}
		if g.Err != nil {
			shown.Error = g.Err.Error()
			failures = append(failures, g.Err)
		}
		if g.Removed || !remove {
			result.Bytes += shown.StoredBytes
		}
		result.Snapshots = append(result.Snapshots, shown)
	}
	if a.json {
		err = a.printJSON(result)
	} else {
		err = a.gcTable(result)
	}
	return errors.Join(append(failures, err)...)
}

func (a *app) gcTable(r collected) error {
	rows, n := [][]string{}, 0
	for _, g := range r.Snapshots {
		state := "kept: something leads to it now"
		switch {
		case r.DryRun:
			state = "would be removed"
		case g.Error != "":
			state = "failed"
		case g.Removed:
			state = "removed"
		}
		if g.Removed || r.DryRun {
			n++
		}
		rows = append(rows, []string{g.ID, string(g.Kind), age(time.Since(g.Created)), formatBytes(g.StoredBytes), first(g.Image, "-"), state})
	}
	if len(rows) > 0 {
		if err := table(a.Out, []string{"ID", "KIND", "CREATED", "SIZE", "IMAGE", "STATE"}, rows); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("%d snapshots, %s", n, formatBytes(r.Bytes))
	if r.DryRun {
		a.say("%s", strings.TrimSpace("to be removed: "+what+map[bool]string{true: "; nothing was removed, --yes does it"}[n > 0]))
	} else {
		a.say("removed: %s", what)
		if r.Swept > 0 {
			a.say("swept: %s that interrupted copies and uploads had left", formatBytes(r.Swept))
		}
	}
	return nil
}
