package block_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// The files in testdata/v1 are what version 1 of the format looks like. They must
// be read for ever; a change that needs -update needs a new version.
var update = flag.Bool("update", false, "write the golden files anew")

func golden(name string) string { return filepath.Join("testdata", "v1", name) }

// goldenContent is what the golden image holds: blocks of 1 KiB, of text, noise
// and zeros.
func goldenContent() []byte {
	p := make([]byte, 24*kib)
	copy(p, bytes.Repeat([]byte("spores sleep and wake. "), 9*kib/23))
	noise(p[12*kib:18*kib], 42)
	return p
}

// writeGolden makes two generations: the first of text and noise, the second of
// four new blocks and a hole over it.
func writeGolden(t *testing.T, codec block.Codec) (headers []*block.Header, layers memory, content []byte) {
	t.Helper()
	o := block.WriterOptions{BlockSize: kib, FrameSize: 4 * kib, Size: 24 * kib, Codec: codec}
	content = goldenContent()
	layers = memory{}

	var first bytes.Buffer
	w := block.NewWriter(&first, uuid.UUID{0x11, 15: 1}, o)
	if err := w.Write(0, content); err != nil {
		t.Fatal(err)
	}
	base, _, err := w.Finish(nil)
	if err != nil {
		t.Fatal(err)
	}
	layers[base.ID] = first.Bytes()

	var second bytes.Buffer
	w = block.NewWriter(&second, uuid.UUID{0x22, 15: 2}, o)
	copy(content[2*kib:], bytes.Repeat([]byte("and wake. "), 2*kib/10))
	clear(content[14*kib : 15*kib])
	noise(content[20*kib:22*kib], 43)
	for _, block := range []int64{2, 3, 14, 20, 21} {
		if err := w.Write(block*kib, content[block*kib:(block+1)*kib]); err != nil {
			t.Fatal(err)
		}
	}
	top, _, err := w.Finish(base)
	if err != nil {
		t.Fatal(err)
	}
	layers[top.ID] = second.Bytes()
	return []*block.Header{base, top}, layers, content
}

// What is written today is what was written then, byte for byte. Only plain
// frames promise that: a better compressor is no other format.
func TestGoldenWrite(t *testing.T) {
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		headers, layers, content := writeGolden(t, codec)
		files := map[string][]byte{"content": content}
		for i, h := range headers {
			name := codec.String() + []string{"-base", "-top"}[i]
			files[name+".header"] = must(h.MarshalBinary())(t)
			files[name+".layer"] = layers[h.ID]
		}
		for name, got := range files {
			if *update {
				if err := os.MkdirAll(golden(""), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden(name), got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := must(os.ReadFile(golden(name)))(t); codec == block.Plain && !bytes.Equal(got, want) {
				t.Errorf("%s is not what it was", name)
			}
		}
	}
}

// What was written then reads today.
func TestGoldenRead(t *testing.T) {
	want := must(os.ReadFile(golden("content")))(t)
	for _, codec := range []block.Codec{block.Plain, block.Zstd} {
		layers := memory{
			{0x11, 15: 1}: must(os.ReadFile(golden(codec.String() + "-base.layer")))(t),
			{0x22, 15: 2}: must(os.ReadFile(golden(codec.String() + "-top.layer")))(t),
		}
		encoded := must(os.ReadFile(golden(codec.String() + "-top.header")))(t)
		h := must(block.DecodeHeader(bytes.NewReader(encoded)))(t)
		if h.Generation != 1 || h.Parent != (uuid.UUID{0x11, 15: 1}) {
			t.Errorf("generation %d, parent %s", h.Generation, h.Parent)
		}
		got := make([]byte, h.Size)
		r := block.NewReader("image", h, layers)
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: it reads otherwise, error %v", codec, err)
		}
		if again := must(h.MarshalBinary())(t); !bytes.Equal(again, encoded) {
			t.Errorf("%s: it is encoded otherwise", codec)
		}
		if d := must(h.Digest())(t); d != block.Sum(encoded) {
			t.Errorf("%s: its digest is %s", codec, d)
		}
	}
}
