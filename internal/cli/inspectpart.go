package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/block"
)

// shownData is what one block holds, or that so many hold nothing.
type shownData struct {
	Block  int64  `json:"block"`
	Offset int64  `json:"offset"`
	Hole   bool   `json:"hole,omitempty"`
	Count  int64  `json:"count,omitempty"` // blocks of the hole
	Bytes  []byte `json:"bytes,omitempty"`
}

// describe describes an image with the part and the data that were asked for.
func (f inspectFlags) describe(ctx context.Context, image *block.Reader) (inspectImage, error) {
	h := image.Header()
	out := describeImage(h)
	if !f.ranged() && !f.data && !f.expand {
		return out, nil
	}
	from, to, err := f.part(h)
	if err != nil {
		return out, err
	}
	out.Part = shownRuns(h, from, to-from)
	if f.data {
		out.Blocks, out.BlocksLeft, err = f.read(ctx, image, from, to)
	}
	return out, err
}

// part returns which bytes of an image are meant.
func (f inspectFlags) part(h *block.Header) (from, to int64, err error) {
	if f.span != "" {
		if f.start != 0 || f.end != wholeImage {
			return 0, 0, usageErrorf("choose the part either by --range or by --start and --end")
		}
		offset, length, ok := strings.Cut(f.span, ":")
		from, errFrom := parseOffset(offset)
		n, errLength := parseOffset(length)
		if !ok || errFrom != nil || errLength != nil || from < 0 || n <= 0 {
			return 0, 0, usageErrorf("--range %q is not OFFSET:LENGTH", f.span)
		}
		if from >= h.Size {
			return 0, 0, usageErrorf("--range %q begins behind the end of an image of %d bytes: choose --memfile or --rootfs", f.span, h.Size)
		}
		from -= from % h.BlockSize
		return min(from, h.Size), min(from+n, h.Size), nil
	}
	to = h.Size
	if f.end >= 0 && f.end < h.Size/h.BlockSize {
		to = (f.end + 1) * h.BlockSize
	}
	if f.start < 0 || f.end < wholeImage || f.start >= h.Size/h.BlockSize || f.start*h.BlockSize >= to {
		return 0, 0, usageErrorf("--start %d, --end %d: choose a first and a last one of the %d blocks, which are counted from 0", f.start, f.end, h.Size/h.BlockSize)
	}
	return f.start * h.BlockSize, to, nil
}

// parseOffset reads 4096, 0x1000 or 64K.
func parseOffset(text string) (int64, error) {
	unit := int64(1)
	if n := len(text); n > 1 {
		switch text[n-1] {
		case 'k', 'K':
			unit = 1 << 10
		case 'm', 'M':
			unit = 1 << 20
		case 'g', 'G':
			unit = 1 << 30
		}
		if unit > 1 {
			text = text[:n-1]
		}
	}
	n, err := strconv.ParseInt(text, 0, 64)
	if err == nil && n > block.MaxSize/unit {
		err = strconv.ErrRange
	}
	return n * unit, err
}

// shownBlocks is how many blocks and holes --data shows if neither a part nor --expand asks for more.
const shownBlocks = 16

// read returns what is in blocks, and how many it has left out.
func (f inspectFlags) read(ctx context.Context, image *block.Reader, from, to int64) (out []shownData, left int64, err error) {
	h := image.Header()
	full := func() bool { return len(out) >= shownBlocks && !f.expand && !f.ranged() }
	for run := range h.RunsIn(from, to-from) {
		at := run.Offset
		if run.IsHole() && !full() {
			out = append(out, shownData{Block: at / h.BlockSize, Offset: at, Hole: true, Count: run.Length / h.BlockSize})
			at = run.End()
		}
		for ; at < run.End() && !full(); at += h.BlockSize {
			d := shownData{Block: at / h.BlockSize, Offset: at, Bytes: make([]byte, h.BlockSize)}
			if _, err := image.ReadAtContext(ctx, d.Bytes, at); err != nil {
				return nil, 0, err
			}
			out = append(out, d)
		}
		left += (run.End() - at) / h.BlockSize
	}
	return out, left, nil
}

// partText shows the runs of a part, or what is in its blocks.
func (a *app) partText(i inspectImage, f inspectFlags) error {
	if !f.data {
		limit := shownRunsLimit
		if f.expand {
			limit = 0
		}
		return runTable(a.Out, i.Part, limit)
	}
	for _, d := range i.Blocks {
		if d.Hole {
			fmt.Fprintf(a.Out, "  block %d, %#x: hole of %d\n", d.Block, d.Offset, d.Count)
			continue
		}
		fmt.Fprintf(a.Out, "  block %d, %#x: %s\n", d.Block, d.Offset, block.Sum(d.Bytes))
		shown := d.Bytes
		if !f.expand {
			shown = shown[:min(64, len(shown))]
		}
		dump := hex.Dumper(a.Out)
		if _, err := dump.Write(shown); err != nil {
			return fmt.Errorf("writing the data: %w", err)
		}
		dump.Close()
	}
	if i.BlocksLeft > 0 {
		fmt.Fprintf(a.Out, "  … and %d more blocks: --expand shows all, --start and --end or --range a part\n", i.BlocksLeft)
	}
	return nil
}
