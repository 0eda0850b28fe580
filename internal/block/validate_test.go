package block_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// valid is a header with something of everything.
func valid() *block.Header {
	one, two := layerOf(1, 8), layerOf(2, 6)
	two.Frames[0].Codec, two.Frames[0].Length = block.Zstd, 1000
	two.Frames[1].Offset = 1000
	h := image(2, 16, []block.Layer{one, two}, run(0, 2, 0, 0), run(2, 4, 1, 0), run(6, 2, 0, 6), hole(8, 6), run(14, 2, 1, 4))
	h.Parent, h.Generation = uuid.UUID{1}, 1
	return h
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(h *block.Header)
		want  string
	}{
		"no id":                {func(h *block.Header) { h.ID = uuid.Nil }, "no id"},
		"its own parent":       {func(h *block.Header) { h.Parent = h.ID }, "own parent"},
		"block size 0":         {func(h *block.Header) { h.BlockSize = 0 }, "block size 0"},
		"block size negative":  {func(h *block.Header) { h.BlockSize = math.MinInt64 }, "block size"},
		"block size odd":       {func(h *block.Header) { h.BlockSize = 1000 }, "block size"},
		"block size small":     {func(h *block.Header) { h.BlockSize = 256 }, "block size"},
		"block size large":     {func(h *block.Header) { h.BlockSize = 4 << 20 }, "block size"},
		"frame size 0":         {func(h *block.Header) { h.FrameSize = 0 }, "frame size"},
		"frame size below":     {func(h *block.Header) { h.FrameSize = h.BlockSize / 2 }, "frame size"},
		"frame size odd":       {func(h *block.Header) { h.FrameSize = 3 * h.BlockSize }, "frame size"},
		"frame size large":     {func(h *block.Header) { h.FrameSize = 32 << 20 }, "frame size"},
		"size 0":               {func(h *block.Header) { h.Size = 0 }, "size 0"},
		"size negative":        {func(h *block.Header) { h.Size = -h.Size }, "size -"},
		"size odd":             {func(h *block.Header) { h.Size++ }, "size"},
		"size large":           {func(h *block.Header) { h.Size = 32 << 40 }, "size"},
		"layer without id":     {func(h *block.Header) { h.Layers[0].ID = uuid.Nil }, "no id"},
		"layer twice":          {func(h *block.Header) { h.Layers[1] = h.Layers[0] }, "twice"},
		"layer size 0":         {func(h *block.Header) { h.Layers[0].Size = 0 }, "size 0"},
		"layer size negative":  {func(h *block.Header) { h.Layers[0].Size = math.MinInt64 }, "size -"},
		"layer size odd":       {func(h *block.Header) { h.Layers[0].Size-- }, "multiple"},
		"layer size large":     {func(h *block.Header) { h.Layers[0].Size = math.MaxInt64 &^ 4095 }, "size"},
		"frame missing":        {func(h *block.Header) { h.Layers[0].Frames = h.Layers[0].Frames[:1] }, "1 frames"},
		"frame too many":       {func(h *block.Header) { h.Layers[0].Size -= 4 * kib }, "2 frames"},
		"frame elsewhere":      {func(h *block.Header) { h.Layers[0].Frames[1].Offset++ }, "frame 1 is stored at"},
		"frame before start":   {func(h *block.Header) { h.Layers[0].Frames[0].Offset = -1 }, "frame 0 is stored at"},
		"plain frame short":    {func(h *block.Header) { h.Layers[0].Frames[1].Length-- }, "stored plain"},
		"plain frame long":     {func(h *block.Header) { h.Layers[1].Frames[1].Length++ }, "stored plain"},
		"zstd frame empty":     {func(h *block.Header) { h.Layers[1].Frames[0].Length = 0 }, "stored as zstd"},
		"zstd frame negative":  {func(h *block.Header) { h.Layers[1].Frames[0].Length = math.MinInt }, "stored as zstd"},
		"zstd frame not less":  {func(h *block.Header) { h.Layers[1].Frames[0].Length = 4 * kib }, "stored as zstd"},
		"unknown codec":        {func(h *block.Header) { h.Layers[1].Frames[0].Codec = 7 }, "codec 7"},
		"run layer below":      {func(h *block.Header) { h.Runs[0].Layer = -2 }, "layer -2"},
		"run layer above":      {func(h *block.Header) { h.Runs[0].Layer = 2 }, "layer 2"},
		"run length 0":         {func(h *block.Header) { h.Runs[0].Length = 0 }, "0 bytes"},
		"run length negative":  {func(h *block.Header) { h.Runs[0].Length = -kib }, "-1024 bytes"},
		"run length wraps":     {func(h *block.Header) { h.Runs[1].Length = math.MaxInt64 &^ 1023 }, "not inside the image"},
		"run offset wraps":     {func(h *block.Header) { h.Runs[4].Offset = math.MaxInt64 &^ 1023 }, "not inside the image"},
		"run offset negative":  {func(h *block.Header) { h.Runs[0].Offset = -kib }, "starts at -1024"},
		"run overlaps":         {func(h *block.Header) { h.Runs[1].Offset -= kib }, "inside or before"},
		"run after the end":    {func(h *block.Header) { h.Runs[4].Length += kib }, "not inside the image"},
		"run odd length":       {func(h *block.Header) { h.Runs[0].Length-- }, "not aligned"},
		"run odd offset":       {func(h *block.Header) { h.Runs[1].Offset++ }, "not aligned"},
		"run odd layer offset": {func(h *block.Header) { h.Runs[0].LayerOffset++ }, "not aligned"},
		"run after its layer":  {func(h *block.Header) { h.Runs[4].LayerOffset += kib }, "not inside layer"},
		"run wraps in layer":   {func(h *block.Header) { h.Runs[4].LayerOffset = math.MaxInt64 &^ 1023 }, "not inside layer"},
		"run before its layer": {func(h *block.Header) { h.Runs[0].LayerOffset = -kib }, "used by runs before"},
		"run uses bytes again": {func(h *block.Header) { h.Runs[4].LayerOffset -= kib }, "used by runs before"},
		"run goes back":        {func(h *block.Header) { h.Runs[0].LayerOffset = 6 * kib }, "used by runs before"},
		"hole with a place":    {func(h *block.Header) { h.Runs[3].LayerOffset = kib }, "a hole with"},
		"gap at the start":     {func(h *block.Header) { h.Runs = h.Runs[1:] }, "cover"},
		"gap inside":           {func(h *block.Header) { h.Runs[3].Length -= kib }, "cover"},
		"gap at the end":       {func(h *block.Header) { h.Runs = h.Runs[:4] }, "cover"},
		"too many layers":      {func(h *block.Header) { h.Layers = make([]block.Layer, block.MaxLayers+1) }, "65537 layers"},
		"no runs":              {func(h *block.Header) { h.Runs = nil }, "cover"},
	} {
		t.Run(name, func(t *testing.T) {
			h := valid()
			c.spoil(h)
			err := h.Validate()
			if !errors.Is(err, block.ErrHeader) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error is %v, want one with %q", err, c.want)
			}
			if c.want == "cover" {
				if err := h.ValidateDiff(); err != nil {
					t.Errorf("a diff may have gaps: %v", err)
				}
			}
			// Nothing can be done with it either.
			if _, err := h.MarshalBinary(); !errors.Is(err, block.ErrHeader) {
				t.Errorf("encoding says %v", err)
			}
			r := block.NewReader("image", h, memory{})
			if _, err := r.ReadAt(make([]byte, 10), 0); !errors.Is(err, block.ErrHeader) {
				t.Errorf("reading says %v", err)
			}
			if err := r.CopyTo(t.Context(), make(file, 1), nil); !errors.Is(err, block.ErrHeader) {
				t.Errorf("copying says %v", err)
			}
			if err := r.Verify(t.Context(), nil); !errors.Is(err, block.ErrHeader) {
				t.Errorf("verifying says %v", err)
			}
		})
	}
}

func TestEncode(t *testing.T) {
	var b bytes.Buffer
	if err := valid().Encode(&b); err != nil {
		t.Fatal(err)
	}
	requireSame(t, must(block.DecodeHeader(bytes.NewReader(b.Bytes())))(t), valid())
	if d := must(valid().Digest())(t); d != block.Sum(b.Bytes()) {
		t.Errorf("its digest is %s", d)
	}
	if err := valid().Encode(&full{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	bad := valid()
	bad.Size = 0
	if err := bad.Encode(&b); !errors.Is(err, block.ErrHeader) {
		t.Errorf("an invalid header: %v", err)
	}
	if _, err := bad.Digest(); !errors.Is(err, block.ErrHeader) {
		t.Errorf("an invalid header has a digest: %v", err)
	}
	broken := errors.New("cable pulled")
	if _, err := block.DecodeHeader(iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, block.ErrHeader) {
		t.Errorf("decoding from a broken disk: %v", err)
	}
}

func TestRunsIn(t *testing.T) {
	h := valid()
	for name, c := range map[string]struct {
		offset, length int64
		want           []block.Run
	}{
		"all":           {0, 16, h.Runs},
		"one run":       {2, 4, []block.Run{run(2, 4, 1, 0)}},
		"inside a run":  {3, 2, []block.Run{run(3, 2, 1, 1)}},
		"two ends":      {5, 2, []block.Run{run(5, 1, 1, 3), run(6, 1, 0, 6)}},
		"inside a hole": {10, 1, []block.Run{hole(10, 1)}},
		"to the end":    {13, math.MaxInt64 / kib, []block.Run{hole(13, 1), run(14, 2, 1, 4)}},
		"nothing":       {3, 0, nil},
		"less":          {3, -1, nil},
		"after the end": {16, 1, nil},
	} {
		var got []block.Run
		for r := range h.RunsIn(c.offset*kib, c.length*kib) {
			got = append(got, r)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: runs are %v, want %v", name, got, c.want)
		}
	}
}

func TestUsage(t *testing.T) {
	u := valid().Usage()
	if u.Own != 6*kib || u.Inherited != 4*kib || u.Holes != 6*kib || u.Data() != 10*kib {
		t.Errorf("usage is %+v", u)
	}
	if l := u.Layers[0]; l.Bytes != 4*kib || l.Runs != 2 || l.ID != (uuid.UUID{1}) {
		t.Errorf("usage of the first layer is %+v", l)
	}
	if l, ok := valid().Layer(uuid.UUID{2}); !ok || l.StoredSize() != 1000+2*kib {
		t.Errorf("layer 2: %v, %d bytes stored", ok, l.StoredSize())
	}
	if _, ok := valid().Layer(uuid.UUID{3}); ok {
		t.Error("there is a layer 3")
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	encoded := must(valid().MarshalBinary())(t)
	if _, err := block.DecodeHeader(bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	for n := range encoded {
		if _, err := block.DecodeHeader(bytes.NewReader(encoded[:n])); !errors.Is(err, block.ErrHeader) {
			t.Errorf("cut to %d bytes of %d: %v", n, len(encoded), err)
		}
	}
	if _, err := block.DecodeHeader(bytes.NewReader(append(bytes.Clone(encoded), 0))); !errors.Is(err, block.ErrHeader) {
		t.Errorf("one byte too many: %v", err)
	}
	// A flipped bit is an error or shows as another header: nothing is ignored.
	for i := range encoded {
		for bit := range 8 {
			damaged := bytes.Clone(encoded)
			damaged[i] ^= 1 << bit
			h, err := block.DecodeHeader(bytes.NewReader(damaged))
			if err != nil {
				if !errors.Is(err, block.ErrHeader) {
					t.Errorf("bit %d of byte %d: %v", bit, i, err)
				}
				continue
			}
			if again := must(h.MarshalBinary())(t); !bytes.Equal(again, damaged) {
				t.Errorf("bit %d of byte %d is ignored", bit, i)
			}
		}
	}
}
