package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// copyFlags are what copy and copy-build do beyond copying.
type copyFlags struct {
	flatten bool
	id, tag string
	seed    seedFlags
}

func (a *app) copyCommand() *cobra.Command {
	var f copyFlags
	c := &cobra.Command{
		Use:   "copy SNAPSHOT... STORE",
		Short: "Copy snapshots, with all that they need, to another store",
		Long: `Copies snapshots and the ancestors that they need from the store at hand (--store) to another one. What the other store has already is not copied again: a
copy that was interrupted goes on where it stopped. To a folder it does so in the middle of a snapshot too, once it has verified what is there; gc removes what nobody
went on with. In a bucket objects appear whole, so there the snapshot that was under way begins anew. Ancestors come first and each snapshot appears whole or not at
all. All data is verified as it is read, and again as it was written. Signatures come along, names don't: see --tag. The ids of the snapshots, as they are in the other
store, are printed.

With --flatten a single layer is copied: a new snapshot with the same content, which needs no ancestors.

` + seedHelp,
		Example: "  spore copy web /mnt/backup\n  spore copy --flatten --tag web:flat web /mnt/backup",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageErrorf("copy takes snapshots and the store to copy them to")
			}
			if len(args) > 2 && (f.id != "" || f.tag != "" || f.seed.team != "") {
				return usageErrorf("--id, --tag and --team are for one snapshot")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, partial string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeSnapshots(cmd, args, partial)
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, flag := range []string{"envd-version", "vcpu", "memory", "disk", "build-tag"} {
				if f.seed.team == "" && cmd.Flags().Changed(flag) {
					return usageErrorf("--%s is for the SQL of --team", flag)
				}
			}
			return a.copy(cmd.Context(), args[:len(args)-1], args[len(args)-1], f)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&f.flatten, "flatten", false, "copy as a single layer, under a new id")
	flags.StringVar(&f.id, "id", "", "`UUID` of the flattened copy (default a new one)")
	flags.StringVarP(&f.tag, "tag", "t", "", "`NAME` for the copy in the other store")
	f.seed.register(flags, "build-tag")
	a.trustFlags(flags)
	return c
}

func (a *app) copyBuildCommand() *cobra.Command {
	var f copyFlags
	var build, from, to string
	c := &cobra.Command{
		Use:   "copy-build --build UUID --from STORAGE --to STORAGE",
		Short: "copy, under the flags of E2B's orchestrator",
		Long: `Does what copy does, under the names and flags of E2B's orchestrator. Long flags also work with a single dash: -build UUID.

` + seedHelp,
		Example: "  spore copy-build -build 123e4567-e89b-42d3-a456-426614174000 -from .local-build -to /mnt/builds -team 8d1f0c22-6f7b-4b52-9a06-2b7f3f1b3a10 | psql",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if build == "" || from == "" || to == "" {
				return usageErrorf("copy-build needs -build UUID, -from STORAGE and -to STORAGE")
			}
			a.storePath = from
			return a.copy(cmd.Context(), []string{build}, to, f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&build, "build", "", "build to copy")
	flags.StringVar(&from, "from", "", "storage that it is in")
	flags.StringVar(&to, "to", "", "storage to copy it to")
	f.seed.register(flags, "tag")
	a.trustFlags(flags)
	c.Annotations = map[string]string{fieldFlags: "yes"}
	return c
}

// copied is one snapshot's result as --json shows it.
type copied struct {
	ID      uuid.UUID   `json:"id"` // in the destination
	Copied  []uuid.UUID `json:"copied"`
	Present []uuid.UUID `json:"present"` // were there already
	Bytes   int64       `json:"bytes"`
	Kept    int64       `json:"kept"` // bytes that an interrupted copy had left
	Seconds float64     `json:"seconds"`
}

func (a *app) copy(ctx context.Context, refs []string, to string, f copyFlags) error {
	if f.id != "" && !f.flatten {
		return usageErrorf("--id is for --flatten: other copies keep their id")
	}
	if f.tag != "" {
		if err := store.CheckName(f.tag); err != nil {
			return usageErrorf("--tag: %v", err)
		}
	}
	if err := f.seed.check(); err != nil {
		return err
	}
	from, err := a.repo(ctx)
	if err != nil {
		return err
	}
	dst, err := a.openRepo(ctx, to)
	if err != nil {
		return err
	}
	results := []copied{}
	for _, ref := range refs {
		result, err := a.copyOne(ctx, from, dst, ref, f)
		if err != nil {
			return err
		}
		results = append(results, result)
	}
	if f.seed.team != "" {
		return a.printSeed(ctx, dst, results[0].ID, f.seed)
	}
	if a.json {
		return a.printJSON(results)
	}
	for _, r := range results {
		if err := a.println(r.ID); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) copyOne(ctx context.Context, from, to *snapshot.Repo, ref string, f copyFlags) (copied, error) {
	id, err := from.Resolve(ctx, ref)
	if err != nil {
		return copied{}, err
	}
	begin := time.Now()
	progress := a.show()
	progress.Phase("copy")
	result := copied{ID: id, Copied: []uuid.UUID{}, Present: []uuid.UUID{}}
	if f.flatten {
		result, err = copyFlat(ctx, from, to, id, f.id, progress.Advance)
	} else {
		var report snapshot.CopyReport
		report, err = to.CopyFrom(ctx, from, id, progress.Advance)
		result.Copied, result.Present = append(result.Copied, report.Copied...), append(result.Present, report.Present...)
		result.Bytes, result.Kept = report.Bytes, report.Kept
	}
	if err != nil {
		return copied{}, err
	}
	progress.end()
	result.Seconds = time.Since(begin).Seconds()
	kept := ""
	if result.Kept > 0 {
		kept = fmt.Sprintf("; %s of an interrupted copy kept", formatBytes(result.Kept))
	}
	a.say("%s: %d copied, %d there already; %s, %s/s%s", ref, len(result.Copied), len(result.Present), formatBytes(result.Bytes),
		formatBytes(int64(float64(result.Bytes)/max(result.Seconds, 1e-3))), kept)
	if f.tag != "" {
		err = to.Tag(ctx, f.tag, result.ID)
	}
	return result, err
}

// copyFlat copies a snapshot as a single layer.
func copyFlat(ctx context.Context, from, to *snapshot.Repo, id uuid.UUID, as string, progress func(done, total int64)) (copied, error) {
	newID, err := newID(as)
	if err != nil {
		return copied{}, err
	}
	s, err := from.OpenID(ctx, id)
	if err != nil {
		return copied{}, err
	}
	defer s.Close()
	flat, err := to.Squash(ctx, newID, s, block.Plain, progress)
	if err != nil {
		return copied{}, err
	}
	defer flat.Close()
	return copied{ID: newID, Copied: []uuid.UUID{newID}, Present: []uuid.UUID{}, Bytes: flat.Metadata().StoredBytes()}, nil
}

// newID reads an id that a user chose, or makes one.
func newID(text string) (uuid.UUID, error) {
	if text == "" {
		return uuid.New(), nil
	}
	return parseID(text)
}

func (a *app) squashCommand() *cobra.Command {
	var id, tag string
	c := &cobra.Command{
		Use:   "squash SNAPSHOT",
		Short: "Make one layer of a snapshot and its ancestors",
		Long: `Makes a snapshot with the same content in a single layer, which needs none of the ancestors. The snapshot itself stays: once nothing leads to it any more, gc
removes it and its ancestors. The new snapshot's id is printed.`,
		Example:           "  spore squash web --tag web && spore gc",
		Args:              exactArgs("one snapshot"),
		ValidArgsFunction: a.completeFirst(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tag != "" {
				if err := store.CheckName(tag); err != nil {
					return usageErrorf("--tag: %v", err)
				}
			}
			ctx := cmd.Context()
			repo, err := a.repo(ctx)
			if err != nil {
				return err
			}
			from, err := repo.Resolve(ctx, args[0])
			if err != nil {
				return err
			}
			progress := a.show()
			progress.Phase("squash")
			result, err := copyFlat(ctx, repo, repo, from, id, progress.Advance)
			if err == nil && tag != "" {
				err = repo.Tag(ctx, tag, result.ID)
			}
			if err != nil {
				return err
			}
			progress.end()
			if a.json {
				return a.printJSON(map[string]any{"id": result.ID, "origin": from, "bytes": result.Bytes})
			}
			return a.println(result.ID)
		},
	}
	c.Flags().StringVar(&id, "id", "", "`UUID` of the new snapshot (default a new one)")
	c.Flags().StringVarP(&tag, "tag", "t", "", "`NAME` for the new snapshot")
	a.trustFlags(c.Flags())
	return c
}
