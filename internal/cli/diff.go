package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/compare"
	"github.com/sporevm/spore/internal/snapshot"
)

// diffFlags choose what is shown of a difference.
type diffFlags struct {
	memfile, rootfs bool
	runs, visualize bool
	noFiles, expand bool
	onlyRuns        bool // show-build-diff
}

// shownRegions, shownFiles and shownRunsLimit are how much a person is shown without --expand.
const (
	shownRegions   = 8
	shownFiles     = 40
	shownRunsLimit = 24
)

func (a *app) diffCommand() *cobra.Command {
	var f diffFlags
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Show how two snapshots differ",
		Long: `Shows how snapshot B differs from snapshot A, without waking either: what was stored anew of disk and memory, which files were added, changed and removed, which
processes came and went, and which fields of the metadata differ. A is often B's parent, but need not be.

Files are compared by content, permissions and owner; times alone are no difference. What lies at the same place on both disks is not read. Stretches of disk and
memory count as changed when they were stored again. Where B's disk or memory is smaller than A's it can't be laid over A's: that is told, and files are compared all
the same; --runs and --visualize, which show what is laid over what, take it for an error.`,
		Args:              exactArgs("a snapshot", "another one"),
		ValidArgsFunction: a.completeFirst(2),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.diff(cmd.Context(), args[0], args[1], f) },
	}
	flags := c.Flags()
	flags.BoolVar(&f.memfile, "memfile", false, "only the memory")
	flags.BoolVar(&f.rootfs, "rootfs", false, "only the disk")
	flags.BoolVar(&f.runs, "runs", false, "list the runs of base, diff and merged image")
	flags.BoolVar(&f.visualize, "visualize", false, "draw base, diff and merged image")
	flags.BoolVar(&f.noFiles, "no-files", false, "leave out files, which take longest")
	flags.BoolVar(&f.expand, "expand", false, "leave nothing out of long lists")
	a.trustFlags(flags)
	return c
}

func (a *app) showBuildDiffCommand() *cobra.Command {
	f := diffFlags{onlyRuns: true, runs: true, noFiles: true, expand: true}
	var from, to, storage string
	c := &cobra.Command{
		Use:   "show-build-diff --from-build UUID --to-build UUID",
		Short: "diff, under the flags of E2B's orchestrator",
		Long: `Shows the runs of the base, of the diff and of the merged image of two builds, under the names and flags of E2B's orchestrator. Long flags also work with a
single dash. A merged image that breaks a rule is an error.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" || to == "" {
				return usageErrorf("show-build-diff needs -from-build UUID and -to-build UUID")
			}
			if a.storePath == "" {
				a.storePath = storage
			}
			return a.diff(cmd.Context(), from, to, f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&from, "from-build", "", "the base")
	flags.StringVar(&to, "to-build", "", "the build to compare with it")
	flags.StringVar(&storage, "storage", fieldStorage, "where the builds are: a folder, gs://bucket/prefix or s3://bucket/prefix")
	flags.BoolVar(&f.memfile, "memfile", false, "only the memory")
	flags.BoolVar(&f.rootfs, "rootfs", false, "only the disk")
	flags.BoolVar(&f.visualize, "visualize", false, "draw the three images")
	a.trustFlags(flags)
	c.Annotations = map[string]string{fieldFlags: "yes"}
	return c
}

// shownDiff is the result as --json shows it.
type shownDiff struct {
	*compare.Report
	Runs map[string]shownMerge `json:"runs,omitempty"` // by artifact
}

type shownMerge struct {
	Base   []shownRun `json:"base"`
	Diff   []shownRun `json:"diff"`
	Merged []shownRun `json:"merged"`
}

func (a *app) diff(ctx context.Context, refA, refB string, f diffFlags) error {
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	older, err := repo.Open(ctx, refA)
	if err != nil {
		return err
	}
	defer older.Close()
	newer, err := repo.Open(ctx, refB)
	if err != nil {
		return err
	}
	defer newer.Close()
	o := compare.Options{Regions: shownRegions, NoFiles: f.noFiles || f.memfile && !f.rootfs, MustFit: f.runs || f.visualize}
	if f.expand || a.json {
		o.Regions = 0
	}
	report, err := compare.Snapshots(ctx, older, newer, o)
	if err != nil {
		return err
	}
	if f.rootfs && !f.memfile {
		report.Memory = nil
	}
	if f.memfile && !f.rootfs {
		report.Disk = nil
	}
	shown := shownDiff{Report: report}
	if f.runs {
		shown.Runs = map[string]shownMerge{}
		for name, i := range images(report) {
			shown.Runs[name] = shownMerge{shownRuns(i.Base, 0, i.Base.Size), shownRuns(i.Diff, 0, i.Diff.Size), shownRuns(i.Merged, 0, i.Merged.Size)}
		}
	}
	if a.json {
		return a.printJSON(shown)
	}
	f.noFiles = o.NoFiles
	return a.diffText(shown, f)
}

// images returns what there is of disk and memory, by artifact.
func images(r *compare.Report) map[string]*compare.Image {
	out := map[string]*compare.Image{}
	if r.Disk != nil {
		out[snapshot.DiskFile] = r.Disk
	}
	if r.Memory != nil {
		out[snapshot.MemoryFile] = r.Memory
	}
	return out
}

func (a *app) diffText(d shownDiff, f diffFlags) error {
	if !f.onlyRuns {
		fmt.Fprintf(a.Out, "A  %s\nB  %s\n", d.A, d.B)
	}
	for _, name := range []string{snapshot.DiskFile, snapshot.MemoryFile} {
		i := images(d.Report)[name]
		if i == nil {
			continue
		}
		fmt.Fprintf(a.Out, "\n%s: %s of %s stored anew, %s turned into zeros\n", name, formatBytes(i.Changed), formatBytes(i.Size), formatBytes(i.Zeroed))
		if f.visualize {
			visualize(a, i)
		}
		if f.runs {
			if err := a.mergeText(d.Runs[name], f.expand); err != nil {
				return err
			}
		} else if err := a.regionText(i); err != nil {
			return err
		}
	}
	for _, note := range d.Notes {
		fmt.Fprintf(a.Out, "\n%s\n", note)
	}
	if f.onlyRuns {
		return nil
	}
	if !f.noFiles {
		a.filesText(d.Files, f.expand)
	}
	a.processText(d.Processes)
	if len(d.Metadata) > 0 {
		fmt.Fprintf(a.Out, "\nmetadata:\n")
	}
	for _, m := range d.Metadata {
		fmt.Fprintf(a.Out, "  %s: %s -> %s\n", oneLine(m.Field), first(oneLine(m.A), "-"), first(oneLine(m.B), "-"))
	}
	return nil
}

// visualize draws the three images in lines of 128 cells: holes light, data dark, what the diff brings darkest.
func visualize(a *app, i *compare.Image) {
	const width = 128
	glyphs := []string{"░", "▓", "█"}
	own := map[uuid.UUID]bool{}
	for _, l := range i.Diff.Layers {
		if _, in := i.Base.Layer(l.ID); !in {
			own[l.ID] = true
		}
	}
	draw := func(name string, h *block.Header) {
		cells := paint(h, width, func(layer int) int {
			switch {
			case layer == block.Hole:
				return 0
			case own[h.Layers[layer].ID]:
				return 2
			}
			return 1
		}, glyphs)
		fmt.Fprintf(a.Out, "  %-6s %s\n", name, cells)
	}
	draw("base", i.Base)
	draw("diff", i.Diff)
	draw("merged", i.Merged)
	fmt.Fprintf(a.Out, "         ░ hole  ▓ data of the base  █ data of the diff\n")
}

func (a *app) mergeText(m shownMerge, expand bool) error {
	limit := shownRunsLimit
	if expand {
		limit = 0
	}
	for _, part := range []struct {
		name string
		runs []shownRun
	}{{"BASE", m.Base}, {"DIFF", m.Diff}, {"MERGED", m.Merged}} {
		fmt.Fprintf(a.Out, "%s: %d runs\n", part.name, len(part.runs))
		if err := runTable(a.Out, part.runs, limit); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) regionText(i *compare.Image) error {
	rows := [][]string{}
	for _, r := range i.Regions {
		rows = append(rows, []string{fmt.Sprintf("  %#x", r.Offset), formatBytes(r.Length)})
	}
	if len(rows) == 0 {
		return nil
	}
	return table(a.Out, []string{"  LARGEST REGIONS", "LENGTH"}, rows)
}

func (a *app) filesText(files []compare.File, expand bool) {
	count := map[compare.Change]int{}
	sizes := map[compare.Change]int64{}
	for _, f := range files {
		count[f.Change]++
		sizes[f.Change] += max(f.SizeA, f.SizeB)
	}
	fmt.Fprintf(a.Out, "\nfiles: %d added (%s), %d changed (%s), %d removed (%s)\n", count[compare.Added], formatBytes(sizes[compare.Added]),
		count[compare.Changed], formatBytes(sizes[compare.Changed]), count[compare.Removed], formatBytes(sizes[compare.Removed]))
	for i, f := range files {
		if i == shownFiles && !expand {
			fmt.Fprintf(a.Out, "  … and %d more: --expand lists all\n", len(files)-i)
			return
		}
		switch f.Change {
		case compare.Added:
			fmt.Fprintf(a.Out, "  + %q  %s  %s\n", f.Path, f.Type, formatBytes(f.SizeB))
		case compare.Removed:
			fmt.Fprintf(a.Out, "  - %q  %s  %s\n", f.Path, f.Type, formatBytes(f.SizeA))
		default:
			fmt.Fprintf(a.Out, "  ~ %q  %s  %s -> %s  %s\n", f.Path, f.Type, formatBytes(f.SizeA), formatBytes(f.SizeB), strings.Join(f.What, ", "))
		}
	}
}

func (a *app) processText(changes []compare.ProcessChange) {
	if len(changes) == 0 {
		return
	}
	fmt.Fprintf(a.Out, "\nprocesses:\n")
	for _, p := range changes {
		sign := "+"
		if p.Change == compare.Removed {
			sign = "-"
		}
		fmt.Fprintf(a.Out, "  %s %d  user %d  %q\n", sign, p.PID, p.UID, p.Command)
	}
}
