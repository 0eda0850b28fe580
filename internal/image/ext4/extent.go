package ext4

const (
	extentMagic     = 0xf30a
	extentLen       = 12 // bytes of a header and of an entry alike
	maxExtentBlocks = 1 << 15
	extentsPerBlock = (BlockSize - extentLen) / extentLen
	extentsInline   = 4
)

// extent says that blocks from logical on lie on the disk from start on.
type extent struct {
	logical, start, len int64
}

// extents cuts what was allocated for a run of a file's blocks into extents.
func extents(list []extent, logical int64, spans []span) []extent {
	for _, s := range spans {
		for s.len > 0 {
			n := min(s.len, maxExtentBlocks)
			list = append(list, extent{logical, s.start, n})
			logical += n
			s.start += n
			s.len -= n
		}
	}
	return list
}

// extentTree returns the 60 bytes of an inode that map its blocks, and how
// many blocks the map takes elsewhere.
func (w *Writer) extentTree(list []extent) (root [60]byte, used int64, err error) {
	depth := 0
	level := make([][extentLen]byte, len(list))
	logical := make([]uint32, len(list))
	for i, e := range list {
		b := &level[i]
		le.PutUint32(b[0:], uint32(e.logical))
		le.PutUint16(b[4:], uint16(e.len))
		le.PutUint16(b[6:], uint16(e.start>>32))
		le.PutUint32(b[8:], uint32(e.start))
		logical[i] = uint32(e.logical)
	}
	for len(level) > extentsInline {
		var above [][extentLen]byte
		var aboveLogical []uint32
		for len(level) > 0 {
			n := min(len(level), extentsPerBlock)
			spans, err := w.alloc(1)
			if err != nil {
				return root, 0, err
			}
			block := make([]byte, BlockSize)
			extentHeader(block, n, extentsPerBlock, depth)
			for i, e := range level[:n] {
				copy(block[(i+1)*extentLen:], e[:])
			}
			if err := w.writeBlocks(block, spans); err != nil {
				return root, 0, err
			}
			var index [extentLen]byte
			le.PutUint32(index[0:], logical[0])
			le.PutUint32(index[4:], uint32(spans[0].start))
			above = append(above, index)
			aboveLogical = append(aboveLogical, logical[0])
			level, logical = level[n:], logical[n:]
			used++
		}
		level, logical = above, aboveLogical
		depth++
	}
	extentHeader(root[:], len(level), extentsInline, depth)
	for i, e := range level {
		copy(root[(i+1)*extentLen:], e[:])
	}
	return root, used, nil
}

func extentHeader(b []byte, entries, most, depth int) {
	le.PutUint16(b[0:], extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(most))
	le.PutUint16(b[6:], uint16(depth))
}
