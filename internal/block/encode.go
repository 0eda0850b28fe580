package block

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	magic       = "sporehdr"
	version     = 1
	fixedLength = 80
)

// MarshalBinary returns the encoded header; see the package documentation for
// the format. Only a whole, valid header can be encoded, and one header has only
// one encoding.
func (h *Header) MarshalBinary() ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	buf := h.appendFixed(make([]byte, 0, h.encodedSizeHint()))
	for _, l := range h.Layers {
		buf = l.append(buf, h.BlockSize)
	}
	buf = h.appendRuns(buf)
	if len(buf) > MaxHeaderSize {
		return nil, invalid("it takes %d bytes encoded, at most %d are allowed", len(buf), MaxHeaderSize)
	}
	return buf, nil
}

// Encode writes the encoded header to w in one call.
func (h *Header) Encode(w io.Writer) error {
	buf, err := h.MarshalBinary()
	if err != nil {
		return err
	}
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("writing block header: %w", err)
	}
	return nil
}

// Digest returns the digest of the encoded header.
func (h *Header) Digest() (Digest, error) {
	buf, err := h.MarshalBinary()
	if err != nil {
		return Digest{}, err
	}
	return Sum(buf), nil
}

// encodedSizeHint is what most headers stay below.
func (h *Header) encodedSizeHint() int {
	n := fixedLength + 4*len(h.Runs)
	for _, l := range h.Layers {
		n += 24 + 36*len(l.Frames)
	}
	return n
}

func (h *Header) appendFixed(buf []byte) []byte {
	le := binary.LittleEndian
	buf = append(buf, magic...)
	buf = le.AppendUint32(buf, version)
	buf = le.AppendUint32(buf, h.Generation)
	buf = le.AppendUint64(buf, uint64(h.BlockSize))
	buf = le.AppendUint64(buf, uint64(h.FrameSize))
	buf = le.AppendUint64(buf, uint64(h.Size))
	buf = append(buf, h.ID[:]...)
	buf = append(buf, h.Parent[:]...)
	buf = le.AppendUint32(buf, uint32(len(h.Layers)))
	return le.AppendUint32(buf, uint32(len(h.Runs)))
}

func (l Layer) append(buf []byte, blockSize int64) []byte {
	buf = append(buf, l.ID[:]...)
	buf = binary.AppendUvarint(buf, uint64(l.Size/blockSize))
	for _, f := range l.Frames {
		buf = append(buf, byte(f.Codec))
		buf = append(buf, f.Digest[:]...)
		if f.Codec != Plain {
			buf = binary.AppendUvarint(buf, uint64(f.Length))
		}
	}
	return buf
}

func (h *Header) appendRuns(buf []byte) []byte {
	used := make([]int64, len(h.Layers))
	for _, r := range h.Runs {
		buf = binary.AppendUvarint(buf, uint64(r.Length/h.BlockSize))
		buf = binary.AppendUvarint(buf, uint64(r.Layer-Hole))
		if r.IsHole() {
			continue
		}
		buf = binary.AppendUvarint(buf, uint64((r.LayerOffset-used[r.Layer])/h.BlockSize))
		used[r.Layer] = r.LayerOffset + r.Length
	}
	return buf
}
