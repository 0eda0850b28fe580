package expose

import "github.com/sporevm/spore/internal/block"

// mapperOf returns what tells holes from data in base, or nil.
func mapperOf(base Base) Mapper {
	switch b := base.(type) {
	case Mapper:
		return b
	case interface{ Header() *block.Header }: // a *block.Reader
		return layeredMapper{b.Header()}
	}
	return nil
}

// layeredMapper finds the holes of a layered image in its header.
type layeredMapper struct{ header *block.Header }

func (m layeredMapper) Extent(offset, limit int64) (length int64, hole bool) {
	for run := range m.header.RunsIn(offset, limit) {
		if length == 0 {
			hole = run.IsHole()
		} else if run.IsHole() != hole {
			return length, hole
		}
		length += run.Length
	}
	if length == 0 { // a header that says nothing about its last bytes
		return limit, false
	}
	return length, hole
}
