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
	Disk      *Image           `json:"disk,omitempty"`   // nil if one can't be laid over the other
	Memory    *Image           `json:"memory,omitempty"` // nil, too, unless both have one
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
	MustFit bool // images that can't be laid over each other are an error, not a note
}

// Snapshots compares two open snapshots. Errors are those of reading them, and of
// a merged header that breaks its rules.
func Snapshots(ctx context.Context, a, b *snapshot.Snapshot, o Options) (*Report, error) {
	r := &Report{A: a.ID(), B: b.ID(), Files: []File{}, Processes: Processes(a.Metadata().Processes, b.Metadata().Processes)}
	r.Metadata = metadata(a.Metadata(), b.Metadata())
	var err error
	if r.Disk, err = r.image("disks", a.Disk(), b.Disk(), o); err != nil {
		return nil, err
	}
	switch {
	case a.Memory() == nil && b.Memory() == nil:
	case a.Memory() == nil || b.Memory() == nil:
		r.Notes = append(r.Notes, "only one of them has a memory")
	default:
		if r.Memory, err = r.image("memories", a.Memory(), b.Memory(), o); err != nil {
			return nil, err
		}
	}
	if !o.NoFiles {
		if r.Files, err = files(ctx, a, b, r.Disk); err != nil {
			return nil, fmt.Errorf("comparing the files of %s and %s: %w", a.ID(), b.ID(), err)
		}
	}
	return r, nil
}

// image compares two images, or notes that they are not such as one can be made of the other.
func (r *Report) image(what string, a, b *block.Reader, o Options) (*Image, error) {
	base, to := a.Header(), b.Header()
	if !o.MustFit && (base.BlockSize != to.BlockSize || base.FrameSize != to.FrameSize || base.Size > to.Size) {
		r.Notes = append(r.Notes, fmt.Sprintf("their %s are of different make, %d and %d bytes: neither is a change of the other", what, base.Size, to.Size))
		return nil, nil
	}
	i, err := Headers(base, to, o)
	if err != nil {
		return nil, fmt.Errorf("comparing the %s of %s and %s: %w", what, r.A, r.B, err)
	}
	return i, nil
}

// Headers compares two images by their headers alone. Bytes that were stored again
// count as changed even if they are equal.
func Headers(base, to *block.Header, o Options) (*Image, error) {
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
