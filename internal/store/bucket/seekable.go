package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// Data files are kept in the zstd seekable format, which `zstd -d` reads too:
// frames of 64 KiB of input each, and at the end a skippable frame with a table,
// all little endian:
//
//	u32 0x184D2A5E, u32 length of what follows
//	for each frame: u32 its length, u32 what it expands to
//	u32 number of frames, u8 0 (no checksums), u32 0x8F92EAB1
//
// There are no checksums because whoever reads has digests of its own.
const (
	inputSize    = 64 << 10
	skippable    = 0x184D2A5E
	seekableTail = 0x8F92EAB1
	entrySize    = 8
	footerSize   = 9
	headSize     = 8

	maxTableSize = 256 << 20 // bytes: 2 TiB of input
	maxRequest   = 4 << 20   // bytes of frames that one request asks for
	packWorkers  = 4
)

// errSeekable is what is wrong with an object that is not in the format.
var errSeekable error = formatError{}

// formatError says that stored bytes are not in the format that they were put in.
type formatError struct{}

func (formatError) Error() string { return "not in the zstd seekable format" }

// Damaged tells those who read that it is no use to ask again, and that the store
// itself can be reached.
func (formatError) Damaged() bool { return true }

// writeSeekable compresses size bytes of src to w.
func writeSeekable(ctx context.Context, w io.Writer, src io.ReaderAt, size int64) error {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(packWorkers), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	defer encoder.Close()
	var table []byte
	var packed [packWorkers]struct{ in, out []byte }
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var g errgroup.Group
		n := 0
		for ; n < packWorkers && off < size; n++ {
			p, at := &packed[n], off
			length := min(inputSize, size-off)
			off += length
			g.Go(func() error {
				p.in = slices.Grow(p.in[:0], inputSize)[:length]
				if _, err := io.ReadFull(io.NewSectionReader(src, at, length), p.in); err != nil {
					return err
				}
				p.out = encoder.EncodeAll(p.in, p.out[:0])
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for _, p := range packed[:n] {
			if _, err := w.Write(p.out); err != nil {
				return err
			}
			table = binary.LittleEndian.AppendUint32(table, uint32(len(p.out)))
			table = binary.LittleEndian.AppendUint32(table, uint32(len(p.in)))
		}
	}
	frames := len(table) / entrySize
	head := binary.LittleEndian.AppendUint32(nil, skippable)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(table)+footerSize))
	tail := binary.LittleEndian.AppendUint32(table, uint32(frames))
	tail = append(tail, 0)
	tail = binary.LittleEndian.AppendUint32(tail, seekableTail)
	_, err = w.Write(append(head, tail...))
	return err
}

// seekable reads what a compressed object expands to.
type seekable struct {
	*object
	size    int64
	packed  []int64 // where each frame starts, and where the last one ends
	plain   []int64 // what comes before each frame expanded, and the size
	decoder *zstd.Decoder
}

// openSeekable reads the table of an object of stored bytes that says of itself
// that it expands to size.
func openSeekable(ctx context.Context, o *object, stored int64, size string) (*seekable, error) {
	want, err := strconv.ParseInt(size, 10, 64)
	if err != nil || want < 0 {
		return nil, fmt.Errorf("%w: it does not say its size", errSeekable)
	}
	// Most tables come with the first request.
	tail := make([]byte, min(stored, 128<<10))
	if err := o.bucket.readRange(ctx, o.key, tail, stored-int64(len(tail))); err != nil {
		return nil, err
	}
	length, err := tableLength(tail, stored)
	if err != nil {
		return nil, err
	}
	if length > int64(len(tail)) {
		tail = make([]byte, length)
		if err := o.bucket.readRange(ctx, o.key, tail, stored-length); err != nil {
			return nil, err
		}
	}
	s := &seekable{object: o, size: want}
	if err := s.parse(tail[int64(len(tail))-length:], stored-length); err != nil {
		return nil, err
	}
	if s.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(inputSize), zstd.WithDecodeAllCapLimit(true)); err != nil {
		return nil, err
	}
	return s, nil
}

// tableLength reads the footer: how long the table is with all that belongs to it.
func tableLength(tail []byte, stored int64) (int64, error) {
	if len(tail) < headSize+footerSize || binary.LittleEndian.Uint32(tail[len(tail)-4:]) != seekableTail || tail[len(tail)-5] != 0 {
		return 0, fmt.Errorf("%w: no table at its end", errSeekable)
	}
	frames := int64(binary.LittleEndian.Uint32(tail[len(tail)-footerSize:]))
	length := headSize + frames*entrySize + footerSize
	if length > stored || length > maxTableSize {
		return 0, fmt.Errorf("%w: a table of %d frames", errSeekable, frames)
	}
	return length, nil
}

// parse reads the table of frames that take up data bytes before it.
func (s *seekable) parse(table []byte, data int64) error {
	if binary.LittleEndian.Uint32(table) != skippable || int64(binary.LittleEndian.Uint32(table[4:])) != int64(len(table))-headSize {
		return fmt.Errorf("%w: its table has no head", errSeekable)
	}
	entries := table[headSize : len(table)-footerSize]
	s.packed, s.plain = make([]int64, 1, len(entries)/entrySize+1), make([]int64, 1, len(entries)/entrySize+1)
	var packed, plain int64
	for len(entries) > 0 {
		p, n := int64(binary.LittleEndian.Uint32(entries)), int64(binary.LittleEndian.Uint32(entries[4:]))
		if p == 0 || p > maxRequest || n == 0 || n > inputSize {
			return fmt.Errorf("%w: a frame of %d bytes that expands to %d", errSeekable, p, n)
		}
		packed, plain, entries = packed+p, plain+n, entries[entrySize:]
		s.packed, s.plain = append(s.packed, packed), append(s.plain, plain)
	}
	if packed != data || plain != s.size {
		return fmt.Errorf("%w: its frames have %d bytes and expand to %d, not %d and %d", errSeekable, packed, plain, data, s.size)
	}
	return nil
}

// Size implements store.Object.
func (s *seekable) Size() int64 { return s.size }

// ReadAt implements io.ReaderAt. Neighbouring frames come in one request.
func (s *seekable) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("reading at a negative offset")
	}
	done := 0
	for done < len(p) && off+int64(done) < s.size {
		n, err := s.readSome(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readSome reads what one request brings.
func (s *seekable) readSome(p []byte, off int64) (int, error) {
	first := sort.Search(len(s.plain)-1, func(i int) bool { return s.plain[i+1] > off })
	end := first + 1
	for end < len(s.plain)-1 && s.plain[end] < off+int64(len(p)) && s.packed[end+1]-s.packed[first] <= maxRequest {
		end++
	}
	stored := make([]byte, s.packed[end]-s.packed[first])
	if err := s.bucket.readRange(s.ctx, s.key, stored, s.packed[first]); err != nil {
		return 0, err
	}
	done := 0
	var scratch []byte
	for i := first; i < end; i++ {
		frame := stored[s.packed[i]-s.packed[first] : s.packed[i+1]-s.packed[first]]
		length, skip := int(s.plain[i+1]-s.plain[i]), int(max(off-s.plain[i], 0))
		partial := skip > 0 || done+length > len(p)
		dst := scratch
		if !partial {
			dst = p[done : done+length]
		} else if dst == nil {
			scratch = make([]byte, inputSize)
			dst = scratch
		}
		out, err := s.decoder.DecodeAll(frame, dst[:0:length])
		if err != nil || len(out) != length {
			return done, fmt.Errorf("frame %d of %s: %w", i, s.key, errors.Join(errSeekable, err))
		}
		if partial {
			length = copy(p[done:], out[skip:])
		}
		done += length
	}
	return done, nil
}

// Close implements io.Closer.
func (s *seekable) Close() error {
	s.decoder.Close()
	return s.object.Close()
}
