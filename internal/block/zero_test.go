package block_test

import (
	"testing"

	"github.com/sporevm/spore/internal/block"
)

func TestIsZeroFindsEveryByte(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 200, 512, 4096} {
		p := make([]byte, size)
		if !block.IsZero(p) {
			t.Errorf("%d zero bytes are not zero", size)
		}
		for i := range p {
			for _, b := range []byte{1, 0x80} {
				p[i] = b
				if block.IsZero(p) {
					t.Errorf("%d bytes with a %#x at %d are zero", size, b, i)
				}
			}
			p[i] = 0
		}
	}
}
