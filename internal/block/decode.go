package block

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// Least bytes that a thing takes encoded. A count is believed only as far as
// the bytes at hand could hold that many.
const (
	minLayerBytes = 16 + 1 + minFrameBytes
	minFrameBytes = 1 + DigestSize
	minRunBytes   = 2
)

// DecodeHeader reads an encoded header up to the end of r, which need not be
// trusted: at most [MaxHeaderSize] bytes are read, memory is taken in
// proportion to what was read, and the header returned is whole and valid.
// Errors about the bytes wrap [ErrHeader]; others are r's own.
func DecodeHeader(r io.Reader) (*Header, error) {
	buf, err := io.ReadAll(io.LimitReader(r, MaxHeaderSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading block header: %w", err)
	}
	if len(buf) > MaxHeaderSize {
		return nil, invalid("it is longer than %d bytes", MaxHeaderSize)
	}
	d := decoder{rest: buf}
	h := d.header()
	if d.err != nil {
		return nil, d.err
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return h, nil
}

// decoder takes a header apart. The first error sticks; after it everything
// reads as zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = invalid(format, args...)
	}
	d.rest = nil
}

// bytes takes the next n bytes; after an error they are nil.
func (d *decoder) bytes(n int) []byte {
	if n > len(d.rest) {
		d.fail("it ends too early")
		return nil
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

// blocks takes a uvarint that counts blocks and returns it in bytes.
func (d *decoder) blocks(blockSize int64) int64 {
	n := d.uvarint()
	if n > uint64(MaxSize/blockSize) {
		d.fail("a length of %d blocks is beyond any image", n)
		return 0
	}
	return int64(n) * blockSize
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	switch {
	case n == 0:
		d.fail("it ends too early")
		return 0
	case n < 0:
		d.fail("a number overflows 64 bits")
		return 0
	case n > 1 && d.rest[n-1] == 0:
		// One header has one encoding, or digests would not name headers.
		d.fail("a number is not in its shortest form")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) header() *Header {
	fixed := d.bytes(fixedLength)
	if d.err != nil {
		return nil
	}
	le := binary.LittleEndian
	if string(fixed[:8]) != magic {
		d.fail("it does not start with %q", magic)
		return nil
	}
	if v := le.Uint32(fixed[8:]); v != version {
		d.fail("its format version is %d, this program knows %d", v, version)
		return nil
	}
	h := &Header{
		Generation: le.Uint32(fixed[12:]),
		BlockSize:  int64(le.Uint64(fixed[16:])),
		FrameSize:  int64(le.Uint64(fixed[24:])),
		Size:       int64(le.Uint64(fixed[32:])),
		ID:         uuid.UUID(fixed[40:56]),
		Parent:     uuid.UUID(fixed[56:72]),
	}
	if d.err = h.validateShape(); d.err != nil {
		return nil
	}
	h.Layers = d.layers(le.Uint32(fixed[72:]), h)
	h.Runs = d.runs(le.Uint32(fixed[76:]), h)
	if len(d.rest) > 0 {
		d.fail("%d bytes follow its end", len(d.rest))
	}
	return h
}

// room reports whether count things of at least size bytes each, and at most
// limit of them, can be in the bytes left.
func (d *decoder) room(count uint64, size int, limit uint64, what string) bool {
	if count > limit {
		d.fail("%d %s, at most %d are allowed", count, what, limit)
		return false
	}
	if count > uint64(len(d.rest)/size) {
		d.fail("%d %s can not be in the %d bytes left", count, what, len(d.rest))
		return false
	}
	return true
}

func (d *decoder) layers(count uint32, h *Header) []Layer {
	if !d.room(uint64(count), minLayerBytes, MaxLayers, "layers") {
		return nil
	}
	layers := make([]Layer, 0, count)
	for range count {
		l := Layer{ID: uuid.UUID(d.id()), Size: d.blocks(h.BlockSize)}
		frames := uint64(frameCount(l.Size, h.FrameSize))
		if !d.room(frames, minFrameBytes, MaxHeaderSize, "frames") {
			return nil
		}
		l.Frames = make([]Frame, frames)
		d.frames(l, h.FrameSize)
		layers = append(layers, l)
	}
	return layers
}

func (d *decoder) id() (id [16]byte) {
	copy(id[:], d.bytes(len(id)))
	return id
}

// frames fills the frame table of l.
func (d *decoder) frames(l Layer, frameSize int64) {
	var stored int64
	for i := range l.Frames {
		entry := d.bytes(minFrameBytes)
		if entry == nil {
			return
		}
		f := Frame{Codec: Codec(entry[0]), Digest: Digest(entry[1:]), Offset: stored}
		f.Length = l.frameLength(i, frameSize)
		if f.Codec != Plain {
			n := d.uvarint()
			if n > uint64(f.Length) {
				d.fail("layer %s: frame %d takes %d bytes stored for %d", l.ID, i, n, f.Length)
				return
			}
			f.Length = int(n)
		}
		stored += int64(f.Length)
		l.Frames[i] = f
	}
}

// runs takes the run table. Sums that leave the image or a layer are left to
// Validate: it stops at the first, long before one could wrap.
func (d *decoder) runs(count uint32, h *Header) []Run {
	if !d.room(uint64(count), minRunBytes, MaxRuns, "runs") {
		return nil
	}
	runs := make([]Run, 0, count)
	used := make([]int64, len(h.Layers))
	var offset int64
	for i := range count {
		r := Run{Offset: offset, Length: d.blocks(h.BlockSize), Layer: Hole}
		if layer := d.uvarint(); layer > uint64(len(h.Layers)) {
			d.fail("run %d: layer %d of %d", i, layer-1, len(h.Layers))
		} else if layer > 0 {
			r.Layer = int(layer) - 1
			r.LayerOffset = used[r.Layer] + d.blocks(h.BlockSize)
			used[r.Layer] = r.LayerOffset + r.Length
		}
		offset += r.Length
		if d.err != nil {
			return nil
		}
		runs = append(runs, r)
	}
	return runs
}
