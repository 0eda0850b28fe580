package block

import (
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// sealer digests and compresses frames. It serves many goroutines.
type sealer struct{ zstd *zstd.Encoder }

func newSealer(codec Codec, frameSize int) (*sealer, error) {
	if codec == Plain {
		return &sealer{}, nil
	}
	// Frames carry a digest, so zstd's own checksum would be work for nothing.
	encoder, err := zstd.NewWriter(nil,
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(zstdWindow(frameSize)),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd: %w", err)
	}
	return &sealer{zstd: encoder}, nil
}

// zstdWindow is the window that a frame needs.
func zstdWindow(frameSize int) int { return max(frameSize, zstd.MinWindowSize) }

func (s *sealer) seal(f *slot) {
	f.stored = f.raw
	f.frame = Frame{Digest: Sum(f.raw), Length: len(f.raw), Codec: Plain}
	if s.zstd == nil {
		return
	}
	f.packed = s.zstd.EncodeAll(f.raw, f.packed[:0])
	if len(f.packed) < len(f.raw) {
		f.stored = f.packed
		f.frame.Length, f.frame.Codec = len(f.packed), Zstd
	}
}

func (s *sealer) close() {
	if s.zstd != nil {
		_ = s.zstd.Close() // nothing was streamed that it could fail to flush
	}
}

// newUnzstd returns a decoder that never makes more bytes than fit its output
// buffer nor keeps more than a frame: a frame that claims to hold more is
// refused before memory is taken for it.
func newUnzstd(frameSize int) (*zstd.Decoder, error) {
	decoder, err := zstd.NewReader(nil,
		zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(uint64(zstdWindow(frameSize))),
		zstd.WithDecoderMaxWindow(uint64(zstdWindow(frameSize))),
		zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd: %w", err)
	}
	return decoder, nil
}
