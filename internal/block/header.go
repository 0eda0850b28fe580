package block

import (
	"iter"
	"slices"
	"sort"

	"github.com/google/uuid"
)

// Default shapes of an image, in bytes.
const (
	DefaultBlockSize = 4 << 10
	DefaultFrameSize = 64 << 10
)

// Hole is the layer of a run that reads as zeros and is stored nowhere.
const Hole = -1

// Run says where one stretch of an image lies. All but Layer are in bytes and
// multiples of the block size.
type Run struct {
	Offset, Length int64 // in the image
	Layer          int   // index into Header.Layers, or Hole
	LayerOffset    int64 // in the layer's packed, uncompressed bytes; 0 for a hole
}

// End is the offset of the first byte after the run.
func (r Run) End() int64 { return r.Offset + r.Length }

// IsHole reports whether the run reads as zeros.
func (r Run) IsHole() bool { return r.Layer == Hole }

// clip returns the part of r inside [from, to), which must overlap r.
func (r Run) clip(from, to int64) Run {
	if skip := from - r.Offset; skip > 0 {
		r.Offset += skip
		r.Length -= skip
		if !r.IsHole() {
			r.LayerOffset += skip
		}
	}
	r.Length = min(r.Length, to-r.Offset)
	return r
}

// continues reports whether r goes on where before ends, in the image and in
// the layer both, so that the two are one run.
func (r Run) continues(before Run) bool {
	if r.Layer != before.Layer || r.Offset != before.End() {
		return false
	}
	return r.IsHole() || r.LayerOffset == before.LayerOffset+before.Length
}

// Layer is what one snapshot stored: its blocks, packed and cut into frames.
type Layer struct {
	ID     uuid.UUID // the snapshot that wrote it
	Size   int64     // bytes packed, uncompressed
	Frames []Frame   // every frame in order, each of FrameSize bytes but the last
}

// StoredSize is the length in bytes of the layer as stored, frames compressed
// as they are: the exact size of its file.
func (l Layer) StoredSize() int64 {
	if len(l.Frames) == 0 {
		return 0
	}
	last := l.Frames[len(l.Frames)-1]
	return last.Offset + int64(last.Length)
}

// frameLength is the uncompressed length of frame i, given the frame size.
func (l Layer) frameLength(i int, frameSize int64) int {
	return int(min(frameSize, l.Size-int64(i)*frameSize))
}

// Header is the table of contents of an image, or of a diff when its runs leave
// gaps. Headers are values that never change once made: [Merge] and [Diff]
// share tables with their arguments.
type Header struct {
	ID         uuid.UUID // the snapshot
	Parent     uuid.UUID // the snapshot it was made from, or uuid.Nil
	Generation uint32    // how many ancestors it has
	BlockSize  int64     // bytes, a power of two
	FrameSize  int64     // bytes, a power of two, at least BlockSize
	Size       int64     // bytes of the image, a multiple of BlockSize
	Layers     []Layer   // all that Runs name, oldest first
	Runs       []Run     // ascending, without overlap
}

// IsWhole reports whether the runs of a valid header leave no gap.
func (h *Header) IsWhole() bool {
	var covered int64
	for _, r := range h.Runs {
		covered += r.Length
	}
	return covered == h.Size
}

// RunsIn yields the runs of a valid header inside length bytes from offset,
// ascending, the first and the last clipped to that range. offset is not
// negative; what lies after the image is left out.
func (h *Header) RunsIn(offset, length int64) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		if offset >= h.Size || length <= 0 {
			return
		}
		end := offset + min(length, h.Size-offset)
		first := sort.Search(len(h.Runs), func(i int) bool { return h.Runs[i].End() > offset })
		for _, r := range h.Runs[first:] {
			if r.Offset >= end || !yield(r.clip(offset, end)) {
				return
			}
		}
	}
}

// Usage says where the bytes of an image lie.
type Usage struct {
	Own       int64      // bytes in the layer that the header's own snapshot wrote
	Inherited int64      // bytes in layers of its ancestors
	Holes     int64      // bytes that read as zeros
	Layers    []LayerUse // one for each of Header.Layers, in that order
}

// Data is the number of bytes that lie in layers.
func (u Usage) Data() int64 { return u.Own + u.Inherited }

// LayerUse says how much of one layer an image uses.
type LayerUse struct {
	ID    uuid.UUID
	Bytes int64 // of the image that lie in this layer
	Runs  int   // in how many stretches
}

// Usage counts the bytes of a valid header by layer, in one pass over its runs.
func (h *Header) Usage() Usage {
	u := Usage{Layers: make([]LayerUse, len(h.Layers))}
	for i, l := range h.Layers {
		u.Layers[i].ID = l.ID
	}
	for _, r := range h.Runs {
		if r.IsHole() {
			u.Holes += r.Length
			continue
		}
		use := &u.Layers[r.Layer]
		use.Bytes += r.Length
		use.Runs++
		if use.ID == h.ID {
			u.Own += r.Length
		} else {
			u.Inherited += r.Length
		}
	}
	return u
}

// Layer returns the layer that the snapshot id wrote, if the header names it.
func (h *Header) Layer(id uuid.UUID) (Layer, bool) {
	i := slices.IndexFunc(h.Layers, func(l Layer) bool { return l.ID == id })
	if i < 0 {
		return Layer{}, false
	}
	return h.Layers[i], true
}
