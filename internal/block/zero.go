package block

import (
	"bytes"
	"encoding/binary"
)

// IsZero reports whether p holds only zero bytes. It runs at memory speed.
func IsZero(p []byte) bool {
	const stride = 64
	if len(p) < stride {
		for _, b := range p {
			if b != 0 {
				return false
			}
		}
		return true
	}
	for i := 0; i < stride; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != 0 {
			return false
		}
	}
	// The first stride is zero, and each byte equals the one a stride before it.
	// The comparison is the runtime's vector code and stops at a difference.
	return bytes.Equal(p[stride:], p[:len(p)-stride])
}
