package block_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"github.com/sporevm/spore/internal/block"
)

// claimed is an image of one zstd frame that is stored as the given bytes, and by
// its digest holds content, a power of two of bytes.
func claimed(stored, content []byte) (*block.Header, memory) {
	size := int64(len(content))
	h := &block.Header{ID: uuid.UUID{1}, BlockSize: kib, FrameSize: size, Size: size, Runs: []block.Run{{Length: size}}}
	frame := block.Frame{Digest: block.Sum(content), Length: len(stored), Codec: block.Zstd}
	h.Layers = []block.Layer{{ID: h.ID, Size: h.Size, Frames: []block.Frame{frame}}}
	return h, memory{h.ID: stored}
}

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// bomb is a zstd frame of blocks of 4 bytes that each unpack to 128 KiB, without a
// word about the size of it all.
func bomb(blocks int) []byte {
	b := append(bytes.Clone(zstdMagic), 0x00, 0x38) // no size; a window of 128 KiB
	for i := range blocks {
		header := uint32(1<<1 | (128<<10)<<3)
		if i == blocks-1 {
			header |= 1
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 'x')
	}
	return b
}

// sized is a zstd frame that says it holds size bytes, and holds a few.
func sized(size uint64) []byte {
	b := append(bytes.Clone(zstdMagic), 0xe0) // single segment, size in 8 bytes
	b = binary.LittleEndian.AppendUint64(b, size)
	return append(b, 1|1<<1|4<<3, 0, 0, 'x')
}

// windowed is a zstd frame that wants a window of 2^41 bytes.
func windowed() []byte {
	return append(bytes.Clone(zstdMagic), 0x00, 0xff, 1|1<<1|4<<3, 0, 0, 'x')
}

// A compressed frame yields its size or an error, and takes no memory for more.
func TestHostileFrames(t *testing.T) {
	encoder := must(zstd.NewWriter(nil))(t)
	defer encoder.Close()
	frame := bytes.Repeat([]byte("spore"), block.DefaultFrameSize/5+1)[:block.DefaultFrameSize]
	pack := func(p []byte) []byte { return encoder.EncodeAll(p, nil) }
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, frame[:100]...)
	for name, stored := range map[string][]byte{
		"bomb":               bomb(16_000), // 2 GiB
		"bomb after the end": append(pack(frame), bomb(15_000)...),
		"huge size":          sized(1 << 60),
		"greatest size":      sized(math.MaxUint64),
		"huge window":        windowed(),
		"one byte more":      pack(append(bytes.Clone(frame), 0)),
		"one byte less":      pack(frame[:len(frame)-1]),
		"nothing":            pack(nil),
		"twice":              append(pack(frame), pack(frame)...),
		"skippable":          skippable,
		"no zstd":            frame[:100],
		"one byte":           {0},
		"cut":                pack(frame)[:20],
	} {
		t.Run(name, func(t *testing.T) {
			if len(stored) == 0 || len(stored) >= block.DefaultFrameSize {
				t.Fatalf("%d bytes are no stored frame", len(stored))
			}
			// The digest is that of what a careless reader would hand out.
			h, layers := claimed(stored, frame)
			if err := h.Validate(); err != nil {
				t.Fatal(err)
			}
			r := block.NewReader("memfile of snapshot x", h, layers)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p := bytes.Repeat([]byte{0xaa}, block.DefaultFrameSize)
			n, err := r.ReadAt(p, 0)
			runtime.ReadMemStats(&after)
			requireCorrupt(t, err, h, 0)
			if n != 0 || !block.IsZero(p) {
				t.Errorf("%d bytes got out", n)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
				t.Errorf("it took %d bytes of memory", took)
			}
		})
	}
	// The same way of storing it is fine for the frame itself.
	h, layers := claimed(pack(frame), frame)
	p := make([]byte, len(frame))
	if _, err := block.NewReader("image", h, layers).ReadAt(p, 0); err != nil || !bytes.Equal(p, frame) {
		t.Errorf("an honest frame: %v", err)
	}
}

// A header that promises much is refused before memory is taken for it.
func TestHostileHeaders(t *testing.T) {
	le := binary.LittleEndian
	good := must(valid().MarshalBinary())(t)
	for name, c := range map[string]struct {
		spoil func(p []byte) []byte
		want  string
	}{
		"nothing":         {func([]byte) []byte { return nil }, "ends too early"},
		"other magic":     {func(p []byte) []byte { p[0]++; return p }, "does not start with"},
		"other version":   {func(p []byte) []byte { p[8]++; return p }, "version is 2"},
		"many layers":     {func(p []byte) []byte { le.PutUint32(p[72:], math.MaxUint32); return p }, "4294967295 layers"},
		"too many layers": {func(p []byte) []byte { le.PutUint32(p[72:], 1<<16); return p }, "65536 layers can not be"},
		"many runs":       {func(p []byte) []byte { le.PutUint32(p[76:], math.MaxUint32); return p }, "4294967295 runs"},
		"too many runs":   {func(p []byte) []byte { le.PutUint32(p[76:], 1<<24); return p }, "16777216 runs can not be"},
		"run beyond": {func(p []byte) []byte {
			// The last run, of 2 blocks in layer 1 at once: as long as can be said.
			return append(binary.AppendUvarint(p[:len(p)-3:len(p)-3], 1<<34), p[len(p)-2:]...)
		}, "not inside the image"},
		"run beyond its layer": {func(p []byte) []byte {
			return binary.AppendUvarint(p[:len(p)-1:len(p)-1], 1<<34)
		}, "not inside layer"},
		"huge layer": {func(p []byte) []byte {
			// 16 TiB in blocks of 1 KiB, the most that a layer may hold.
			return append(binary.AppendUvarint(p[:96:96], 1<<34), p[97:]...)
		}, "4294967296 frames"},
		"layer beyond": {func(p []byte) []byte {
			return append(binary.AppendUvarint(p[:96:96], 1<<34+1), p[97:]...)
		}, "beyond any image"},
		"number of 11 bytes": {func(p []byte) []byte {
			return append(append(p[:96:96], bytes.Repeat([]byte{0xff}, 11)...), p[97:]...)
		}, "overflows"},
		"padded number": {func(p []byte) []byte {
			return append(append(p[:96:96], p[96]|0x80, 0), p[97:]...)
		}, "shortest form"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := c.spoil(bytes.Clone(good))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := block.DecodeHeader(bytes.NewReader(bad))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, block.ErrHeader) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
				t.Errorf("it took %d bytes of memory", took)
			}
		})
	}
}

// endless is a stream that never ends.
type endless struct{ read int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read += int64(len(p))
	return len(p), nil
}

func TestDecodeBoundsWhatItReads(t *testing.T) {
	e := &endless{}
	if _, err := block.DecodeHeader(e); !errors.Is(err, block.ErrHeader) || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error is %v", err)
	}
	if e.read > block.MaxHeaderSize+1 {
		t.Errorf("%d bytes read", e.read)
	}
}
