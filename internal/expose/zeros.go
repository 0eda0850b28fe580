package expose

import "io"

// Zeros is a Base of so many bytes that are all zero.
type Zeros int64

// Size implements Base.
func (z Zeros) Size() int64 { return int64(z) }

// ReadAt implements Base.
func (z Zeros) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(int64(z)-off, 0)))
	clear(p[:n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent implements Mapper.
func (z Zeros) Extent(offset, limit int64) (int64, bool) { return min(limit, int64(z)-offset), true }
