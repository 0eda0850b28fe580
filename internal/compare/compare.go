// Package compare tells how two snapshots differ, without waking either: where
// their disks and memories lie apart, which files and which processes came, went
// and changed.
package compare

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// Report is how snapshot B differs from A.
type Report struct {
	A         uuid.UUID        `json:"a"`
	B         uuid.UUID        `json:"b"`
	Disk      *Image           `json:"disk,omitempty"`
	Memory    *Image           `json:"memory,omitempty"` // nil unless both have one
	Files     []File           `json:"files"`            // by path
	Processes []ProcessChange  `json:"processes"`        // by number
	Notes     []string         `json:"notes,omitempty"`  // what could not be compared, and why
	Metadata  []MetadataChange `json:"metadata"`         // fields that differ
}

// Image is how one image differs. All sizes are in bytes.
type Image struct {
	Size    int64    `json:"size"`    // of B's
	Changed int64    `json:"changed"` // stored anew
	Zeroed  int64    `json:"zeroed"`  // turned into holes
	Regions []Region `json:"regions"` // largest first

	Base   *block.Header `json:"-"`
	Diff   *block.Header `json:"-"`
	Merged *block.Header `json:"-"` // the diff laid over the base, which is B's
}

// Region is a stretch that differs.
type Region struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Options bound a comparison.
type Options struct {
	Regions int  // most regions of an image to list; 0: all
	NoFiles bool // leave out files
}

// Snapshots compares two open snapshots. Errors are those of reading them, and of
// a merged header that breaks its rules.
func Snapshots(ctx context.Context, a, b *snapshot.Snapshot, o Options) (*Report, error) {
	r := &Report{A: a.ID(), B: b.ID(), Files: []File{}, Processes: Processes(a.Metadata().Processes, b.Metadata().Processes)}
	r.Metadata = metadata(a.Metadata(), b.Metadata())
	var err error
	if r.Disk, err = Headers(a.Disk().Header(), b.Disk().Header(), o); err != nil {
		return nil, fmt.Errorf("comparing the disks of %s and %s: %w", a.ID(), b.ID(), err)
	}
	switch {
	case a.Memory() == nil && b.Memory() == nil:
	case a.Memory() == nil || b.Memory() == nil:
		r.Notes = append(r.Notes, "only one of them has a memory")
	case a.Memory().Header().BlockSize != b.Memory().Header().BlockSize || a.Memory().Size() > b.Memory().Size():
		r.Notes = append(r.Notes, "their memories are of different make")
	default:
		if r.Memory, err = Headers(a.Memory().Header(), b.Memory().Header(), o); err != nil {
			return nil, fmt.Errorf("comparing the memories of %s and %s: %w", a.ID(), b.ID(), err)
		}
	}
	if !o.NoFiles {
		if r.Files, err = files(ctx, a, b, r.Disk); err != nil {
			return nil, fmt.Errorf("comparing the files of %s and %s: %w", a.ID(), b.ID(), err)
		}
	}
	return r, nil
}

// Headers compares two images by their headers alone. Bytes that were stored again
// count as changed even if they are equal.
func Headers(base, to *block.Header, o Options) (*Image, error) {
	if base.Size > to.Size {
		return nil, fmt.Errorf("the first has %d bytes, more than the second's %d", base.Size, to.Size)
	}
	diff, err := block.Diff(base, to)
	if err != nil {
		return nil, err
	}
	merged, err := block.Merge(base, diff)
	if err != nil {
		return nil, err
	}
	if err := merged.Validate(); err != nil {
		return nil, fmt.Errorf("the merged header: %w", err)
	}
	i := &Image{Size: to.Size, Base: base, Diff: diff, Merged: merged, Regions: []Region{}}
	for _, run := range diff.Runs {
		if run.IsHole() {
			i.Zeroed += run.Length
		} else {
			i.Changed += run.Length
		}
	}
	i.Regions = append(i.Regions, regions(diff)...)
	slices.SortStableFunc(i.Regions, func(a, b Region) int { return cmp.Compare(b.Length, a.Length) })
	if o.Regions > 0 && len(i.Regions) > o.Regions {
		i.Regions = i.Regions[:o.Regions]
	}
	return i, nil
}

// regions returns what a diff covers, ascending, neighbours joined.
func regions(diff *block.Header) []Region {
	var out []Region
	for _, run := range diff.Runs {
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == run.Offset {
			out[n-1].Length += run.Length
		} else {
			out = append(out, Region{run.Offset, run.Length})
		}
	}
	return out
}

// ProcessChange is a process that is in only one of two snapshots.
type ProcessChange struct {
	Change Change `json:"change"` // Added, Removed
	snapshot.Process
}

// Processes tells which processes came and went. One is the same if its number,
// its parent, its user and its command are.
func Processes(a, b []snapshot.Process) []ProcessChange {
	out := []ProcessChange{}
	for _, p := range a {
		if !slices.Contains(b, p) {
			out = append(out, ProcessChange{Removed, p})
		}
	}
	for _, p := range b {
		if !slices.Contains(a, p) {
			out = append(out, ProcessChange{Added, p})
		}
	}
	slices.SortStableFunc(out, func(x, y ProcessChange) int { return cmp.Compare(x.PID, y.PID) })
	return out
}

// MetadataChange is a field that differs.
type MetadataChange struct {
	Field string `json:"field"`
	A     string `json:"a"`
	B     string `json:"b"`
}

func metadata(a, b *snapshot.Metadata) []MetadataChange {
	out := []MetadataChange{}
	add := func(field string, a, b any) {
		if x, y := fmt.Sprint(a), fmt.Sprint(b); x != y {
			out = append(out, MetadataChange{field, x, y})
		}
	}
	add("arch", a.Arch, b.Arch)
	add("vcpus", a.VCPUs, b.VCPUs)
	add("memory_bytes", a.MemoryBytes, b.MemoryBytes)
	add("disk_bytes", a.DiskBytes, b.DiskBytes)
	add("net", a.Net, b.Net)
	add("engine", a.Engine.Name+" "+a.Engine.Version, b.Engine.Name+" "+b.Engine.Version)
	add("kernel", a.Kernel.Version, b.Kernel.Version)
	add("agent", a.Agent, b.Agent)
	add("image", a.Image.Digest, b.Image.Digest)
	add("user", a.Context.User, b.Context.User)
	add("workdir", a.Context.Workdir, b.Context.Workdir)
	add("env", a.Context.Env, b.Context.Env)
	add("start_command", a.StartCommand, b.StartCommand)
	add("ready_command", a.ReadyCommand, b.ReadyCommand)
	add("labels", a.Labels, b.Labels)
	return out
}
