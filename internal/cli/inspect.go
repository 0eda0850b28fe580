package cli

import (
	"context"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// inspectFlags choose what is shown.
type inspectFlags struct {
	memfile, rootfs   bool
	data              bool
	start, end        int64 // blocks; end -1: the last
	span              string
	recursive, expand bool
	text              bool
}

func (f *inspectFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.memfile, "memfile", false, "only the memory")
	flags.BoolVar(&f.rootfs, "rootfs", false, "only the disk")
	flags.BoolVar(&f.data, "data", false, "show what is in the blocks, verified")
	flags.Int64Var(&f.start, "start", 0, "first block to show runs or data of")
	flags.Int64Var(&f.end, "end", wholeImage, "last block to show runs or data of; -1: the image's last")
	flags.StringVar(&f.span, "range", "", "the same in bytes: OFFSET:LENGTH, such as 0x1000:64K")
	flags.BoolVar(&f.recursive, "recursive", false, "also the ancestors, each with its images")
	flags.BoolVar(&f.expand, "expand", false, "leave nothing out: every run, every byte of --data")
}

// ranged tells whether a part was asked for.
func (f *inspectFlags) ranged() bool { return f.start != 0 || f.end != wholeImage || f.span != "" }

// wholeImage is the end that means the image's last block.
const wholeImage = -1

func (a *app) inspectCommand() *cobra.Command {
	var f inspectFlags
	c := &cobra.Command{
		Use:   "inspect SNAPSHOT",
		Short: "Show what a snapshot is made of",
		Long: `Shows a snapshot's metadata, its lineage, and how its disk and memory are put together: which layers hold how much of them, and a map of where its bytes lie. It is
text on a terminal or with --text, JSON elsewhere.

With --start, --end or --range the runs of a part are listed; with --data what is in its blocks, or in the first of the image if no part is named. Metadata and headers are checked on the way, and so is all data that
is shown; for the rest see verify.`,
		Example:           "  spore inspect web\n  spore inspect web --memfile --range 0x100000:64K --data",
		Args:              exactArgs("one snapshot"),
		ValidArgsFunction: a.completeFirst(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args[0], f) },
	}
	f.register(c.Flags())
	c.Flags().BoolVar(&f.text, "text", false, "text, not JSON, where stdout is no terminal")
	a.trustFlags(c.Flags())
	return c
}

func (a *app) inspectBuildCommand() *cobra.Command {
	var f inspectFlags
	var build, storage string
	var validate bool
	c := &cobra.Command{
		Use:   "inspect-build --build UUID",
		Short: "inspect, under the flags of E2B's orchestrator",
		Long:  "Does what inspect does, under the names and flags of E2B's orchestrator. Long flags also work with a single dash: -build UUID. -validate is verify.",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if build == "" {
				return usageErrorf("inspect-build needs -build UUID")
			}
			if a.storePath == "" {
				a.storePath = storage
			}
			if validate {
				return a.verify(cmd.Context(), []string{build}, false)
			}
			return a.inspect(cmd.Context(), build, f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&build, "build", "", "build to inspect")
	flags.StringVar(&storage, "storage", fieldStorage, "where the builds are: a folder, gs://bucket/prefix or s3://bucket/prefix")
	f.register(flags)
	flags.BoolVar(&validate, "validate", false, "read all of it and check every byte")
	flags.BoolVar(&f.text, "text", false, "text, not JSON, where stdout is no terminal")
	a.trustFlags(flags)
	c.Annotations = map[string]string{fieldFlags: "yes"}
	return c
}

// inspected is the result as --json shows it.
type inspected struct {
	Digest   block.Digest            `json:"digest"`
	Names    []string                `json:"names"`
	Children []uuid.UUID             `json:"children"`
	Lineage  []ancestor              `json:"lineage"` // parent first
	Metadata *snapshot.Metadata      `json:"metadata"`
	Wakes    *wakes                  `json:"wakes,omitempty"` // nil for a disk alone
	Images   map[string]inspectImage `json:"images"`
}

// inspectImage describes the disk or the memory.
type inspectImage struct {
	Size       int64          `json:"size"` // bytes, as are all sizes
	BlockSize  int64          `json:"block_size"`
	FrameSize  int64          `json:"frame_size"`
	Generation uint32         `json:"generation"`
	Data       int64          `json:"data"`  // in layers
	Zeros      int64          `json:"zeros"` // in holes
	Runs       int            `json:"runs"`
	Layers     []inspectLayer `json:"layers"` // oldest first

	Part       []shownRun  `json:"part,omitempty"` // the runs that were asked for
	Blocks     []shownData `json:"blocks,omitempty"`
	BlocksLeft int64       `json:"blocks_left,omitempty"` // that nobody asked for by their number, and are not shown

	header *block.Header
}

// inspectLayer is one layer's part in an image.
type inspectLayer struct {
	Snapshot uuid.UUID `json:"snapshot"`
	Used     int64     `json:"used"`   // of the image, in bytes
	Packed   int64     `json:"packed"` // all that the layer holds, uncompressed
	Stored   int64     `json:"stored"` // its file
	Frames   int       `json:"frames"`
	Runs     int       `json:"runs"`
}

func describeImage(h *block.Header) inspectImage {
	usage := h.Usage()
	out := inspectImage{
		Size: h.Size, BlockSize: h.BlockSize, FrameSize: h.FrameSize, Generation: h.Generation, Data: usage.Data(), Zeros: usage.Holes, Runs: len(h.Runs), header: h,
		Layers: make([]inspectLayer, len(h.Layers)),
	}
	for i, l := range h.Layers {
		out.Layers[i] = inspectLayer{
			Snapshot: l.ID, Used: usage.Layers[i].Bytes, Packed: l.Size, Stored: l.StoredSize(), Frames: len(l.Frames), Runs: usage.Layers[i].Runs,
		}
	}
	return out
}

func (a *app) inspect(ctx context.Context, ref string, f inspectFlags) error {
	repo, err := a.repo(ctx)
	if err != nil {
		return err
	}
	snap, err := repo.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer snap.Close()
	infos, err := repo.List(ctx, nil)
	if err != nil {
		return err
	}
	result := inspected{Digest: snap.Digest(), Names: []string{}, Children: []uuid.UUID{}, Metadata: snap.Metadata(), Images: map[string]inspectImage{}}
	byID := make(map[uuid.UUID]snapshot.Info, len(infos))
	for _, i := range infos {
		byID[i.ID] = i
		if i.Metadata.Parent == snap.ID() {
			result.Children = append(result.Children, i.ID)
		}
	}
	result.Names = append(result.Names, byID[snap.ID()].Names...)
	if result.Lineage, err = lineage(ctx, repo, snap.Metadata().Parent, byID, f); err != nil {
		return err
	}
	if result.Wakes, err = a.wakesHere(ctx, repo, snap); err != nil {
		return err
	}
	for name, image := range chosen(snap, f) {
		if result.Images[name], err = f.describe(ctx, image); err != nil {
			return err
		}
	}
	_, tty := terminal(a.Out)
	if a.json || !tty && !f.text {
		return a.printJSON(result)
	}
	return a.inspectText(result, f)
}

// chosen returns the images that the flags ask for.
func chosen(s *snapshot.Snapshot, f inspectFlags) map[string]*block.Reader {
	images := map[string]*block.Reader{}
	if f.rootfs || !f.memfile {
		images[snapshot.DiskFile] = s.Disk()
	}
	if s.Memory() != nil && (f.memfile || !f.rootfs) {
		images[snapshot.MemoryFile] = s.Memory()
	}
	return images
}
