package expose

import (
	"math/bits"
	"sync"
)

// buffers lends byte slices of up to nbdMaxPayload bytes, in sizes of powers of two. The zero value is ready.
type buffers struct {
	classes [bufferClasses]sync.Pool
}

const (
	smallestBuffer = 12 // log2
	bufferClasses  = 25 - smallestBuffer + 1
)

// buffer is a lent slice. Pools hold pointers to it, since putting a bare slice into one would allocate.
type buffer struct {
	bytes []byte
	class int
}

// get returns a buffer whose bytes are n long, with arbitrary content.
func (b *buffers) get(n int) *buffer {
	class := max(0, bits.Len(uint(max(n, 1)-1))-smallestBuffer)
	buf, ok := b.classes[class].Get().(*buffer)
	if !ok {
		buf = &buffer{bytes: make([]byte, 1<<(class+smallestBuffer)), class: class}
	}
	buf.bytes = buf.bytes[:n]
	return buf
}

// put takes a buffer back; nil is nothing.
func (b *buffers) put(buf *buffer) {
	if buf != nil {
		b.classes[buf.class].Put(buf)
	}
}
