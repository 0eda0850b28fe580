package block

import (
	"errors"
	"fmt"
)

// Codec is how a frame is stored.
type Codec uint8

// The codecs. Plain frames can be mapped and read in place; zstd frames are for
// stores that are far away.
const (
	Plain Codec = 0
	Zstd  Codec = 1
)

// String returns the codec's name.
func (c Codec) String() string {
	switch c {
	case Plain:
		return "plain"
	case Zstd:
		return "zstd"
	default:
		return fmt.Sprintf("codec %d", uint8(c))
	}
}

// Frame is one separately verified piece of a layer.
type Frame struct {
	Digest Digest // of the uncompressed bytes
	Offset int64  // in the layer's stored bytes
	Length int    // in bytes, as stored
	Codec  Codec
}

// validate checks the stored length of a frame that holds length bytes.
func (f Frame) validate(length int) error {
	switch f.Codec {
	case Plain:
		if f.Length != length {
			return fmt.Errorf("%d bytes stored plain, need %d", f.Length, length)
		}
	case Zstd:
		// A frame that does not shrink is stored plain, so this bound is exact.
		if f.Length < 1 || f.Length >= length {
			return fmt.Errorf("%d bytes stored as zstd, need 1 to %d", f.Length, length-1)
		}
	default:
		return fmt.Errorf("unknown %s", f.Codec)
	}
	return nil
}

var errDigest = errors.New("its digest does not match")

// verify checks the uncompressed bytes of a frame.
func (f Frame) verify(p []byte) error {
	if Sum(p) != f.Digest {
		return errDigest
	}
	return nil
}
