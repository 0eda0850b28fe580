package block

import (
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Merge lays diff over base and returns the header of the image that results.
// Where diff has a run it wins and base is split around it; where diff has a gap
// base shows through. If base is itself a diff, so is the result, and merging is
// associative: a chain can be merged in any grouping.
//
// The result has diff's identity (ID, Parent, Generation) and size, names just
// the layers that its runs use, and has as few runs as can be. An image may
// grow: what base lacks of diff's size reads as zeros. Errors wrap [ErrHeader].
func Merge(base, diff *Header) (*Header, error) {
	if err := checkPair(base, diff); err != nil {
		return nil, fmt.Errorf("merging block headers: %w", err)
	}
	layers, renumbered, err := joinLayers(base, diff)
	if err != nil {
		return nil, fmt.Errorf("merging block headers: %w", err)
	}

	older := grown(base, diff.Size)
	out := make(runList, 0, len(older)+len(diff.Runs))
	var end int64
	for _, r := range diff.Runs {
		older = out.addRange(older, end, r.Offset)
		if !r.IsHole() {
			r.Layer = renumbered[r.Layer]
		}
		out.add(r)
		end = r.End()
	}
	out.addRange(older, end, diff.Size)

	merged := *diff
	merged.Layers, merged.Runs = layers, out
	merged.dropUnused()
	if err := merged.ValidateDiff(); err != nil {
		return nil, fmt.Errorf("merging block headers: the images do not fit together: %w", err)
	}
	return &merged, nil
}

// Diff returns what must be laid over base to get to, as a diff with to's
// identity: Merge(base, diff) is to. Both are whole. A stretch that lies at the
// same place in both is a gap in the diff; so bytes that were stored again count
// as changed even if they are equal. Errors wrap [ErrHeader].
func Diff(base, to *Header) (*Header, error) {
	if err := checkPair(base, to); err != nil {
		return nil, fmt.Errorf("comparing block headers: %w", err)
	}
	if !base.IsWhole() || !to.IsWhole() {
		return nil, fmt.Errorf("comparing block headers: %w", errGaps)
	}
	layers, renumbered, err := joinLayers(base, to)
	if err != nil {
		return nil, fmt.Errorf("comparing block headers: %w", err)
	}

	older := grown(base, to.Size)
	var out runList
	for _, r := range to.Runs {
		if !r.IsHole() {
			r.Layer = renumbered[r.Layer]
		}
		older = out.addUnlike(older, r)
	}

	diff := *to
	diff.Layers, diff.Runs = layers, out
	diff.dropUnused()
	if err := diff.ValidateDiff(); err != nil {
		return nil, fmt.Errorf("comparing block headers: %w", err)
	}
	return &diff, nil
}

// checkPair checks that both headers are valid and that newer fits over base.
func checkPair(base, newer *Header) error {
	if err := base.ValidateDiff(); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if err := newer.ValidateDiff(); err != nil {
		return err
	}
	switch {
	case base.BlockSize != newer.BlockSize:
		return invalid("blocks of %d bytes over blocks of %d", newer.BlockSize, base.BlockSize)
	case base.FrameSize != newer.FrameSize:
		return invalid("frames of %d bytes over frames of %d", newer.FrameSize, base.FrameSize)
	case base.Size > newer.Size:
		return invalid("an image can grow but not shrink from %d bytes to %d", base.Size, newer.Size)
	}
	return nil
}

// grown returns the runs of h followed by a hole up to size.
func grown(h *Header, size int64) []Run {
	if h.Size == size {
		return h.Runs
	}
	hole := Run{Offset: h.Size, Length: size - h.Size, Layer: Hole}
	return append(slices.Clip(h.Runs), hole)
}

// joinLayers returns the layers of both headers, base's first, and for each of
// newer's layers its index among them. A layer in both is in the result once.
func joinLayers(base, newer *Header) (joined []Layer, renumbered []int, err error) {
	joined = slices.Clone(base.Layers)
	index := make(map[uuid.UUID]int, len(joined))
	for i, l := range joined {
		index[l.ID] = i
	}
	renumbered = make([]int, len(newer.Layers))
	for i, l := range newer.Layers {
		at, known := index[l.ID]
		if !known {
			at = len(joined)
			joined = append(joined, l)
		} else if joined[at].Size != l.Size || !slices.Equal(joined[at].Frames, l.Frames) {
			return nil, nil, invalid("layer %s is not the same in both", l.ID)
		}
		renumbered[i] = at
	}
	return joined, renumbered, nil
}

// dropUnused removes the layers that no run names and renumbers the runs, which
// must be h's own.
func (h *Header) dropUnused() {
	used := make([]bool, len(h.Layers))
	for _, r := range h.Runs {
		if !r.IsHole() {
			used[r.Layer] = true
		}
	}
	renumbered := make([]int, len(h.Layers))
	var kept []Layer
	for i, l := range h.Layers {
		renumbered[i] = len(kept)
		if used[i] {
			kept = append(kept, l)
		}
	}
	if len(kept) == len(h.Layers) {
		return
	}
	h.Layers = kept
	for i := range h.Runs {
		if r := &h.Runs[i]; !r.IsHole() {
			r.Layer = renumbered[r.Layer]
		}
	}
}
