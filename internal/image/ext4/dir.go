package ext4

import (
	"cmp"
	"fmt"
	"slices"
)

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode Inode
	Mode  uint32 // for its type
}

func entryLen(name int) int { return 8 + (name+3)&^3 }

// AddDir adds a directory in parent with the given entries, "." and ".."
// aside. The root is its own parent. Entries must have different names.
func (w *Writer) AddDir(ino, parent Inode, a Attributes, entries []Entry) error {
	n := inode{flags: flagExtents, links: 2}
	for _, e := range entries {
		if len(e.Name) == 0 || len(e.Name) > 255 {
			return fmt.Errorf("%w: a name of %d bytes", ErrTooLarge, len(e.Name))
		}
		if e.Mode&modeType == modeDir {
			n.links++
		}
	}
	if n.links > maxLinks {
		n.links = 1 // the kernel's sign for a directory with more than it counts
	}
	dots := []Entry{{".", ino, modeDir}, {"..", parent, modeDir}}
	data := linear(append(dots, entries...))
	if len(data) > BlockSize {
		if indexed := w.indexed(dots, entries); indexed != nil {
			data = indexed
			n.flags |= flagIndex
		}
	}
	n.size = int64(len(data))
	n.blocks = n.size / BlockSize
	spans, err := w.alloc(n.blocks)
	if err != nil {
		return err
	}
	if err := w.writeBlocks(data, spans); err != nil {
		return err
	}
	if err := w.mapBlocks(&n, extents(nil, 0, spans)); err != nil {
		return err
	}
	group := int(ino-1) / inodesPerGroup
	for len(w.dirs) <= group {
		w.dirs = append(w.dirs, 0)
	}
	w.dirs[group]++
	return w.put(ino, a, n)
}

// linear lays entries out in blocks one after the other; an entry does not
// cross into the next block, and the last of a block reaches to its end.
func linear(entries []Entry) []byte {
	var data []byte
	at, last := BlockSize, 0
	for _, e := range entries {
		size := entryLen(len(e.Name))
		if at+size > BlockSize {
			stretch(data, last)
			data = append(data, make([]byte, BlockSize)...)
			at = 0
		}
		last = len(data) - BlockSize + at
		putEntry(data[last:], e, size)
		at += size
	}
	stretch(data, last)
	return data
}

// stretch makes the entry at offset last reach to the end of data.
func stretch(data []byte, last int) {
	if len(data) > 0 {
		le.PutUint16(data[last+4:], uint16(len(data)-last))
	}
}

func putEntry(b []byte, e Entry, size int) {
	le.PutUint32(b[0:], uint32(e.Inode))
	le.PutUint16(b[4:], uint16(size))
	b[6] = uint8(len(e.Name))
	b[7] = fileType(e.Mode)
	copy(b[8:], e.Name)
}

func fileType(mode uint32) uint8 {
	switch mode & modeType {
	case modeRegular:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFifo:
		return 5
	case modeSymlink:
		return 7
	}
	return 6 // socket
}

const (
	rootLimit = (BlockSize - 32) / 8 // entries of an index's first block
	nodeLimit = (BlockSize - 8) / 8  // and of the others
)

// indexEntry leads from the lowest hash of a block to that block.
type indexEntry struct {
	hash, block uint32
}

// indexed lays entries out in blocks sorted by the hash of their names, with
// the index before them. It returns nil if the directory is too large for an
// index of two levels: it then stays a list.
func (w *Writer) indexed(dots, entries []Entry) []byte {
	type hashed struct {
		Entry
		hash uint32
	}
	list := make([]hashed, len(entries))
	for i, e := range entries {
		list[i] = hashed{e, w.hash.sum(e.Name)}
	}
	slices.SortFunc(list, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.Name, b.Name))
	})
	var leaves []byte
	var index []indexEntry
	var block []Entry
	flush := func() {
		leaves = append(leaves, linear(block)...)
		block = block[:0]
	}
	left := 0
	for i, e := range list {
		size := entryLen(len(e.Name))
		if size > left {
			hash := e.hash
			if i == 0 {
				hash = 0
			} else {
				flush()
				if list[i-1].hash == hash {
					hash |= 1 // the names of one hash go on from the block before
				}
			}
			index = append(index, indexEntry{hash, uint32(len(leaves) / BlockSize)})
			left = BlockSize
		}
		block = append(block, e.Entry)
		left -= size
	}
	flush()

	if len(index) <= rootLimit {
		return append(indexRoot(dots, index, 0, 1), leaves...)
	}
	var nodes []byte
	var top []indexEntry
	count := (len(index) + nodeLimit - 1) / nodeLimit
	if count > rootLimit {
		return nil
	}
	for part := range slices.Chunk(index, nodeLimit) {
		top = append(top, indexEntry{part[0].hash, uint32(len(nodes) / BlockSize)})
		node := make([]byte, BlockSize)
		le.PutUint16(node[4:], BlockSize) // an unused entry over the whole block
		putIndex(node[8:], part, nodeLimit, uint32(1+count))
		nodes = append(nodes, node...)
	}
	return slices.Concat(indexRoot(dots, top, 1, 1), nodes, leaves)
}

// indexRoot is an indexed directory's first block. To those who do not know
// of indexes it holds only "." and "..".
func indexRoot(dots []Entry, index []indexEntry, levels uint8, first uint32) []byte {
	b := make([]byte, BlockSize)
	putEntry(b, dots[0], 12)
	putEntry(b[12:], dots[1], BlockSize-12)
	b[28] = hashHalfMD4
	b[29] = 8 // length of this description
	b[30] = levels
	putIndex(b[32:], index, rootLimit, first)
	return b
}

// putIndex writes index entries. The first one's hash is implied; how many
// there may be and are takes its place.
func putIndex(b []byte, index []indexEntry, limit int, first uint32) {
	for i, e := range index {
		le.PutUint32(b[8*i:], e.hash)
		le.PutUint32(b[8*i+4:], first+e.block)
	}
	le.PutUint16(b[0:], uint16(limit))
	le.PutUint16(b[2:], uint16(len(index)))
}
