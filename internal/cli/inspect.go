package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

func (a *app) inspectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "inspect SNAPSHOT",
		Short: "Show what a snapshot is made of",
		Long: `Shows a snapshot's metadata and how its disk and memory are put together: which layers hold how much of them.

Metadata and headers are checked on the way; for the data itself see verify.`,
		Args:              exactArgs("one snapshot"),
		ValidArgsFunction: a.completeSnapshots,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.inspect(cmd, args[0]) },
	}
	a.trustFlags(c.Flags())
	return c
}

// inspected is the result as --json shows it.
type inspected struct {
	Digest   block.Digest            `json:"digest"`
	Names    []string                `json:"names"`
	Children []uuid.UUID             `json:"children"`
	Metadata *snapshot.Metadata      `json:"metadata"`
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
		Size: h.Size, BlockSize: h.BlockSize, FrameSize: h.FrameSize, Generation: h.Generation, Data: usage.Data(), Zeros: usage.Holes, Runs: len(h.Runs),
		Layers: make([]inspectLayer, len(h.Layers)),
	}
	for i, l := range h.Layers {
		out.Layers[i] = inspectLayer{
			Snapshot: l.ID, Used: usage.Layers[i].Bytes, Packed: l.Size, Stored: l.StoredSize(), Frames: len(l.Frames), Runs: usage.Layers[i].Runs,
		}
	}
	return out
}

func (a *app) inspect(cmd *cobra.Command, ref string) error {
	ctx := cmd.Context()
	repo, err := a.repo(cmd.Context())
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
	for _, i := range infos {
		if i.ID == snap.ID() {
			result.Names = append(result.Names, i.Names...)
		}
		if i.Metadata.Parent == snap.ID() {
			result.Children = append(result.Children, i.ID)
		}
	}
	result.Images[snapshot.DiskFile] = describeImage(snap.Disk().Header())
	if memory := snap.Memory(); memory != nil {
		result.Images[snapshot.MemoryFile] = describeImage(memory.Header())
	}
	if a.json {
		return a.printJSON(result)
	}
	return a.inspectText(result)
}

func (a *app) inspectText(r inspected) error {
	m := r.Metadata
	var rows [][]string
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("id", m.ID.String())
	add("names", strings.Join(r.Names, ", "))
	add("digest", r.Digest.String())
	add("kind", string(m.Kind))
	if m.Parent != uuid.Nil {
		add("parent", m.Parent.String())
	}
	for _, child := range r.Children {
		add("child", child.String())
	}
	add("created", fmt.Sprintf("%s (%s)", m.Created.Format(time.RFC3339), age(time.Since(m.Created))))
	add("image", strings.TrimSpace(m.Image.Ref+" "+m.Image.Digest))
	if n := len(m.Image.Packages); n > 0 {
		add("packages", fmt.Sprintf("%d, listed by --json", n))
	}
	machine := m.Arch
	if m.VCPUs > 0 {
		machine += fmt.Sprintf(", %d vCPU, %s memory, network %s", m.VCPUs, formatBytes(m.MemoryBytes), cmp.Or(m.Net, "none"))
	}
	add("machine", machine)
	if m.Engine.Name != "" {
		add("engine", strings.TrimSpace(fmt.Sprintf("%s %s %s %s", m.Engine.Name, m.Engine.Version, m.Engine.Machine, m.Engine.Accel)))
		add("cpu", m.CPU.Model)
	}
	add("kernel", m.Kernel.Version)
	add("agent", m.Agent)
	add("user", m.Context.User)
	add("workdir", m.Context.Workdir)
	for _, name := range slices.Sorted(maps.Keys(m.Context.Env)) {
		add("env", name+"="+m.Context.Env[name])
	}
	add("entrypoint", quoteArgs(m.Entrypoint))
	add("cmd", quoteArgs(m.Cmd))
	for _, s := range m.Steps {
		add("step", strings.ToUpper(s.Kind)+" "+strings.Join(s.Args, " "))
	}
	add("start", m.StartCommand)
	add("ready", m.ReadyCommand)
	for _, name := range slices.Sorted(maps.Keys(m.Labels)) {
		add("label", name+"="+m.Labels[name])
	}
	if err := table(a.Out, nil, rows); err != nil {
		return err
	}
	for _, name := range []string{snapshot.DiskFile, snapshot.MemoryFile} {
		if image, ok := r.Images[name]; ok {
			if err := a.imageText(name, image); err != nil {
				return err
			}
		}
	}
	return nil
}

func quoteArgs(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = fmt.Sprintf("%q", arg)
	}
	return strings.Join(quoted, " ")
}

func (a *app) imageText(name string, i inspectImage) error {
	fmt.Fprintf(a.Out, "\n%s: %s, of which %s data and %s zeros, in %d runs; generation %d, blocks of %s, frames of %s\n",
		name, formatBytes(i.Size), formatBytes(i.Data), formatBytes(i.Zeros), i.Runs, i.Generation, formatBytes(i.BlockSize), formatBytes(i.FrameSize))
	rows := make([][]string, len(i.Layers))
	for n, l := range i.Layers {
		rows[n] = []string{"  " + l.Snapshot.String(), formatBytes(l.Used), formatBytes(l.Packed), formatBytes(l.Stored), fmt.Sprint(l.Frames), fmt.Sprint(l.Runs)}
	}
	if len(rows) == 0 {
		return nil
	}
	return table(a.Out, []string{"  LAYER OF", "USED", "PACKED", "STORED", "FRAMES", "RUNS"}, rows)
}
