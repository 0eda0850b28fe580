package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// Bounds of a kernel image, far from what is there: Debian's have 14 MB, and 53 MB unpacked.
const (
	maxKernelFile = 256 << 20
	maxKernel     = 1 << 30
)

// UnpackKernel writes the ELF file that an x86 kernel image (a bzImage) holds, for VMMs that load nothing else. It reports false for a file that is no bzImage,
// and then writes nothing.
func UnpackKernel(w io.Writer, path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("reading the guest kernel: %w", err)
	}
	if info.Size() > maxKernelFile {
		return false, fmt.Errorf("the guest kernel %s has %d bytes: at most %d are allowed", path, info.Size(), maxKernelFile)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("reading the guest kernel: %w", err)
	}
	payload, ok, err := bzPayload(image)
	if !ok || err != nil {
		return ok, err
	}
	kernel, err := unpackPayload(payload)
	if err != nil {
		return true, fmt.Errorf("unpacking the guest kernel %s: %w", path, err)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return true, fmt.Errorf("unpacking the guest kernel %s: what it holds is not an ELF file", path)
	}
	_, err = w.Write(kernel)
	return true, err
}

// bzPayload finds the compressed kernel in an image (Documentation/arch/x86/boot): the boot sector tells how many more there are before the rest, and the
// header from version 2.08 on where in that the payload is. Its last four bytes are the size of what it holds.
func bzPayload(image []byte) ([]byte, bool, error) {
	const sectorsAt, magicAt, versionAt, offsetAt, lengthAt, headerEnd, sector = 0x1f1, 0x202, 0x206, 0x248, 0x24c, 0x250, 512
	if len(image) < headerEnd || string(image[magicAt:magicAt+4]) != "HdrS" {
		return nil, false, nil
	}
	if v := binary.LittleEndian.Uint16(image[versionAt:]); v < 0x208 {
		return nil, true, fmt.Errorf("the guest kernel is of the boot protocol %d.%02d, which does not tell where its payload is", v>>8, v&0xff)
	}
	sectors := int64(image[sectorsAt])
	if sectors == 0 {
		sectors = 4
	}
	at := (sectors+1)*sector + int64(binary.LittleEndian.Uint32(image[offsetAt:]))
	length := int64(binary.LittleEndian.Uint32(image[lengthAt:]))
	if length < 8 || at+length > int64(len(image)) {
		return nil, true, errors.New("the guest kernel's header points outside of it")
	}
	return image[at : at+length], true, nil
}

// unpackPayload decompresses a payload of a format that needs no library that we have not.
func unpackPayload(payload []byte) ([]byte, error) {
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxKernel {
		return nil, fmt.Errorf("%d bytes are promised, at most %d are allowed", size, int64(maxKernel))
	}
	body := payload[:len(payload)-4]
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		return unpackLZ4(body, size)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(payload)) // its own trailer ends in the size
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return readExactly(r, size)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxMemory(uint64(max(size, 1<<20))), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readExactly(r, size)
	}
	return nil, fmt.Errorf("it is compressed in a way that is not known here (it begins with % x): unpack it with extract-vmlinux of the kernel's sources", payload[:4])
}

// readExactly reads size bytes and the end.
func readExactly(r io.Reader, size int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, size+1))
	if err == nil && int64(len(out)) != size {
		err = fmt.Errorf("%d bytes or more, where %d are promised", len(out), size)
	}
	return out, err
}

// unpackLZ4 decompresses LZ4's legacy format: after a magic number blocks of at most 8 MiB, each after its size.
func unpackLZ4(p []byte, size int64) ([]byte, error) {
	const magic, maxBlock = 0x184c2102, 8 << 20
	out := make([]byte, 0, min(size, 16*int64(len(p)))) // the format can do 255 times, but no kernel does
	for len(p) >= 4 {
		n := binary.LittleEndian.Uint32(p)
		p = p[4:]
		if n == magic {
			continue
		}
		if uint64(n) > uint64(len(p)) {
			return nil, fmt.Errorf("a block of %d bytes, where %d are left", n, len(p))
		}
		var err error
		if out, err = appendLZ4Block(out, p[:n], min(int64(len(out))+maxBlock, size)); err != nil {
			return nil, err
		}
		p = p[n:]
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("%d bytes, where %d are promised", len(out), size)
	}
	return out, nil
}

var errLZ4 = errors.New("the LZ4 data is damaged")

// appendLZ4Block appends what a block holds, which makes out no longer than limit. A block refers to nothing before itself.
func appendLZ4Block(out, p []byte, limit int64) ([]byte, error) {
	start := len(out)
	for len(p) > 0 {
		token := p[0]
		p = p[1:]
		literals, rest, ok := lz4Length(int64(token>>4), p)
		if !ok || literals > int64(len(rest)) || int64(len(out))+literals > limit {
			return nil, errLZ4
		}
		out, p = append(out, rest[:literals]...), rest[literals:]
		if len(p) == 0 {
			break // the last sequence has no match
		}
		if len(p) < 2 {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(p))
		match, rest, ok := lz4Length(int64(token&15), p[2:])
		match += 4
		if !ok || offset == 0 || offset > len(out)-start || int64(len(out))+match > limit {
			return nil, errLZ4
		}
		p = rest
		for match > 0 { // what is copied may run into what is being written
			n := min(int64(offset), match)
			from := len(out) - offset
			out = append(out, out[from:from+int(n)]...)
			match -= n
		}
	}
	return out, nil
}

// lz4Length reads the rest of a length whose first four bits are n.
func lz4Length(n int64, p []byte) (length int64, rest []byte, ok bool) {
	if n < 15 {
		return n, p, true
	}
	for i, b := range p {
		n += int64(b)
		if b != 255 {
			return n, p[i+1:], true
		}
	}
	return 0, nil, false
}
