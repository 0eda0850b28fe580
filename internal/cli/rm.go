package cli

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
)

func (a *app) rmCommand() *cobra.Command {
	var force, ignoreMissing bool
	c := &cobra.Command{
		Use:   "rm SNAPSHOT...",
		Short: "Remove snapshots",
		Long: `Removes snapshots, with their names and what this host has cached of them. The ids of what was removed are printed.

A snapshot whose data others need is not removed, unless with --force they are removed too. One that a machine runs on is never removed.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf("rm takes at least one snapshot")
			}
			return nil
		},
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rm(cmd.Context(), args, force, ignoreMissing)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "also remove the snapshots that need these")
	c.Flags().BoolVar(&ignoreMissing, "ignore-missing", false, "a snapshot that is not there is no error")
	return c
}

func (a *app) rm(ctx context.Context, refs []string, force, ignoreMissing bool) error {
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	removed, failures := []uuid.UUID{}, []error{}
	for _, ref := range refs {
		id, err := repo.Resolve(ctx, ref)
		if err == nil {
			var gone []uuid.UUID
			gone, err = repo.Remove(ctx, id, force)
			removed = append(removed, gone...)
		}
		if err != nil && !(ignoreMissing && exitCode(err) == exitNotFound) {
			failures = append(failures, err)
		}
	}
	if a.json {
		err = a.printJSON(map[string][]uuid.UUID{"removed": removed})
	} else {
		for _, id := range removed {
			err = errors.Join(err, a.println(id))
		}
	}
	return errors.Join(append(failures, err)...)
}
