package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// bzImage makes an image with a payload. The size of what it holds is appended, as the kernel's build does, unless the format ends in it.
func bzImage(payload []byte, size int, appendSize bool) []byte {
	if appendSize {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(size))
	}
	image := make([]byte, 3*512, 3*512+len(payload))
	image[0x1f1] = 2
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(append(image, make([]byte, 16)...), payload...)
}

func unpackImage(t testing.TB, image []byte) ([]byte, bool, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ok, err := UnpackKernel(&out, path)
	return out.Bytes(), ok, err
}

// lz4Legacy packs by literals and by runs of the byte before.
func lz4Legacy(p []byte) []byte {
	var block []byte
	length := func(n int) {
		for ; n >= 255; n -= 255 {
			block = append(block, 255)
		}
		block = append(block, byte(n))
	}
	for len(p) > 0 {
		literals := 1
		for literals < len(p) && (literals < 2 || p[literals] != p[literals-1]) {
			literals++
		}
		run := 0
		for literals+run < len(p) && p[literals+run] == p[literals-1] {
			run++
		}
		if run < 4 || literals+run == len(p) {
			literals, run = literals+run, 0
		}
		token := byte(min(literals, 15) << 4)
		if run > 0 {
			token |= byte(min(run-4, 15))
		}
		block = append(block, token)
		if literals >= 15 {
			length(literals - 15)
		}
		block = append(block, p[:literals]...)
		p = p[literals:]
		if run == 0 && len(p) > 0 {
			// A sequence without a match ends a block.
			break
		}
		if run > 0 {
			block = append(block, 1, 0)
			if run-4 >= 15 {
				length(run - 4 - 15)
			}
			p = p[run:]
		}
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(block)))
	out = append(out, block...)
	if len(p) > 0 {
		out = append(out, lz4Legacy(p)...)
	}
	return out
}

var lz4Magic = []byte{0x02, 0x21, 0x4c, 0x18}

func TestUnpackKernel(t *testing.T) {
	elf := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel, kernel, kernel\x00\x00\x00\x00\x00\x00\x00"), 3000)...)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(elf)
	z.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"lz4":  bzImage(append(bytes.Clone(lz4Magic), lz4Legacy(elf)...), len(elf), true),
		"gzip": bzImage(zipped.Bytes(), len(elf), false),
		"zstd": bzImage(enc.EncodeAll(elf, nil), len(elf), true),
	} {
		got, ok, err := unpackImage(t, image)
		if err != nil || !ok || !bytes.Equal(got, elf) {
			t.Errorf("%s: %d bytes, %v, %v", name, len(got), ok, err)
		}
	}
	if got, ok, err := unpackImage(t, elf); ok || err != nil || len(got) > 0 {
		t.Errorf("an ELF file: %d bytes, %v, %v", len(got), ok, err)
	}
	good := bzImage(append(bytes.Clone(lz4Magic), lz4Legacy(elf)...), len(elf), true)
	for what, spoil := range map[string]func([]byte) []byte{
		"cut short":       func(p []byte) []byte { return p[:len(p)-100] },
		"old":             func(p []byte) []byte { p[0x206], p[0x207] = 0, 2; return p },
		"a wrong size":    func(p []byte) []byte { p[len(p)-4]++; return p },
		"a huge size":     func(p []byte) []byte { p[len(p)-1] = 0xff; return p },
		"a strange magic": func(p []byte) []byte { p[3*512+16] = 'x'; return p },
		"a huge block":    func(p []byte) []byte { p[3*512+16+7] = 0xff; return p },
		"a wild offset":   func(p []byte) []byte { binary.LittleEndian.PutUint32(p[0x248:], 1<<31); return p },
		"no kernel":       func(p []byte) []byte { p[3*512+16+4+4+2]++; return p },
	} {
		if got, ok, err := unpackImage(t, spoil(bytes.Clone(good))); err == nil || !ok {
			t.Errorf("%s: %d bytes, %v, %v", what, len(got), ok, err)
		}
	}
	if _, _, err := unpackImage(t, bzImage([]byte("\xfd7zXZ\x00 and so on"), 100, true)); err == nil || !strings.Contains(err.Error(), "extract-vmlinux") {
		t.Errorf("a format that is not known: %v", err)
	}
}

// TestLZ4 compares with the packer above, and with the tool of that name where there is one.
func TestLZ4(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOf(rapid.ByteRange(0, 3)).Draw(t, "bytes")
		got, err := unpackLZ4(append(bytes.Clone(lz4Magic), lz4Legacy(p)...), int64(len(p)))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%v becomes %v, %v", p, got, err)
		}
	})
}

// TestDebiansKernel unpacks the kernel that scripts/kernel gets.
func TestDebiansKernel(t *testing.T) {
	k, err := FindKernel(KernelsDir(os.Getenv), "", "amd64")
	var none *NoKernelError
	if errors.As(err, &none) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if ok, err := UnpackKernel(f, k.Path); !ok || err != nil {
		t.Fatalf("%v, %v", ok, err)
	}
	out, err := exec.Command("readelf", "-hW", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "X86-64") {
		t.Errorf("readelf: %v\n%s", err, out)
	}
}

func FuzzUnpackKernel(f *testing.F) {
	elf := []byte("\x7fELF and more and more and moreeeeeeeeeeeeeeeeee")
	f.Add(bzImage(append(bytes.Clone(lz4Magic), lz4Legacy(elf)...), len(elf), true))
	f.Add(bzImage([]byte("\x1f\x8b"), 100, true))
	f.Add(bzImage([]byte("\x28\xb5\x2f\xfd"), 100, true))
	f.Fuzz(func(t *testing.T, image []byte) {
		payload, ok, err := bzPayload(image)
		if !ok || err != nil {
			return
		}
		if binary.LittleEndian.Uint32(payload[len(payload)-4:]) > 1<<20 {
			return // allowed, and slow
		}
		if out, err := unpackPayload(payload); err == nil && int(binary.LittleEndian.Uint32(payload[len(payload)-4:])) != len(out) {
			t.Errorf("%d bytes", len(out))
		}
	})
}
