package block

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// Limits that every header keeps. They bound what a hostile header can make its
// reader allocate or compute, and are far above what real machines need.
const (
	MinBlockSize  = 512
	MaxBlockSize  = 2 << 20
	MaxFrameSize  = 16 << 20
	MaxSize       = 16 << 40  // bytes of an image, and of a layer
	MaxLayers     = 1 << 16   // layers of one header
	MaxRuns       = 1 << 24   // runs of one header
	MaxHeaderSize = 128 << 20 // bytes of an encoded header: frames of 64 KiB for 256 GiB of data
)

// ErrHeader is wrapped by every error about a header that breaks a rule of the
// package, encoded or not.
var ErrHeader = errors.New("invalid block header")

var errGaps = invalid("its runs do not cover the whole image")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrHeader}, args...)...)
}

// Validate checks all the rules of a whole header. Its errors wrap [ErrHeader].
func (h *Header) Validate() error {
	if err := h.ValidateDiff(); err != nil {
		return err
	}
	if !h.IsWhole() {
		return errGaps
	}
	return nil
}

// ValidateDiff checks all the rules but one: the runs may leave gaps. Its errors
// wrap [ErrHeader].
func (h *Header) ValidateDiff() error {
	if err := h.validateShape(); err != nil {
		return err
	}
	if err := h.validateLayers(); err != nil {
		return err
	}
	return h.validateRuns()
}

// validateShape checks the fixed fields, which all other checks build on.
func (h *Header) validateShape() error {
	switch {
	case h.ID == uuid.Nil:
		return invalid("it has no id")
	case h.ID == h.Parent:
		return invalid("snapshot %s is its own parent", h.ID)
	}
	return validateSizes(h.BlockSize, h.FrameSize, h.Size)
}

func validateSizes(blockSize, frameSize, size int64) error {
	switch {
	case !isPowerOfTwo(blockSize) || blockSize < MinBlockSize || blockSize > MaxBlockSize:
		return invalid("block size %d is not a power of two from %d to %d", blockSize, MinBlockSize, MaxBlockSize)
	case !isPowerOfTwo(frameSize) || frameSize < blockSize || frameSize > MaxFrameSize:
		return invalid("frame size %d is not a power of two from the block size %d to %d", frameSize, blockSize, MaxFrameSize)
	case size <= 0 || size > MaxSize || size%blockSize != 0:
		return invalid("size %d is not a multiple of the block size %d from 1 to %d", size, blockSize, int64(MaxSize))
	}
	return nil
}

func isPowerOfTwo(n int64) bool { return n > 0 && n&(n-1) == 0 }

func (h *Header) validateLayers() error {
	if len(h.Layers) > MaxLayers {
		return invalid("%d layers, at most %d are allowed", len(h.Layers), MaxLayers)
	}
	seen := make(map[uuid.UUID]struct{}, len(h.Layers))
	for _, l := range h.Layers {
		if _, twice := seen[l.ID]; twice {
			return invalid("layer %s is listed twice", l.ID)
		}
		seen[l.ID] = struct{}{}
		if err := l.validate(h.BlockSize, h.FrameSize); err != nil {
			return err
		}
	}
	return nil
}

func (l Layer) validate(blockSize, frameSize int64) error {
	switch {
	case l.ID == uuid.Nil:
		return invalid("a layer has no id")
	case l.Size <= 0 || l.Size > MaxSize || l.Size%blockSize != 0:
		return invalid("layer %s: size %d is not a multiple of the block size %d from 1 to %d", l.ID, l.Size, blockSize, int64(MaxSize))
	case int64(len(l.Frames)) != frameCount(l.Size, frameSize):
		return invalid("layer %s: %d frames for %d bytes, need %d", l.ID, len(l.Frames), l.Size, frameCount(l.Size, frameSize))
	}
	var stored int64
	for i, f := range l.Frames {
		if f.Offset != stored {
			return invalid("layer %s: frame %d is stored at %d, not at %d where the one before ends", l.ID, i, f.Offset, stored)
		}
		if err := f.validate(l.frameLength(i, frameSize)); err != nil {
			return invalid("layer %s: frame %d: %w", l.ID, i, err)
		}
		stored += int64(f.Length)
	}
	return nil
}

func frameCount(size, frameSize int64) int64 { return (size + frameSize - 1) / frameSize }

func (h *Header) validateRuns() error {
	if len(h.Runs) > MaxRuns {
		return invalid("%d runs, at most %d are allowed", len(h.Runs), MaxRuns)
	}
	var end int64                        // of the runs so far, in the image
	used := make([]int64, len(h.Layers)) // end of the runs so far, in each layer
	aligned := func(n int64) bool { return n&(h.BlockSize-1) == 0 }
	for i, r := range h.Runs {
		// The order matters: each sum below is safe because of the check before it.
		switch {
		case r.Offset < end:
			return invalid("run %d starts at %d, inside or before the run that ends at %d", i, r.Offset, end)
		case r.Length <= 0 || r.Offset > h.Size || r.Length > h.Size-r.Offset:
			return invalid("run %d: %d bytes at %d are not inside the image of %d", i, r.Length, r.Offset, h.Size)
		case !aligned(r.Offset) || !aligned(r.Length) || !aligned(r.LayerOffset):
			return invalid("run %d: not aligned to blocks of %d", i, h.BlockSize)
		}
		end = r.End()
		if r.IsHole() {
			if r.LayerOffset != 0 {
				return invalid("run %d: a hole with a place in a layer", i)
			}
			continue
		}
		if r.Layer < 0 || r.Layer >= len(h.Layers) {
			return invalid("run %d: layer %d of %d", i, r.Layer, len(h.Layers))
		}
		l := h.Layers[r.Layer]
		switch {
		case r.LayerOffset < used[r.Layer]:
			return invalid("run %d: at %d of layer %s, of which %d bytes are used by runs before it", i, r.LayerOffset, l.ID, used[r.Layer])
		case r.LayerOffset > l.Size || r.Length > l.Size-r.LayerOffset:
			return invalid("run %d: %d bytes at %d are not inside layer %s of %d", i, r.Length, r.LayerOffset, l.ID, l.Size)
		}
		used[r.Layer] = r.LayerOffset + r.Length
	}
	return nil
}
