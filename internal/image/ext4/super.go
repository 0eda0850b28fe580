package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
)

var le = binary.LittleEndian

const superOffset, superSize = 1024, 1024

// offsets in the superblock of what Grow changes or insists on
const (
	sbInodes     = 0x00
	sbBlocks     = 0x04
	sbFreeBlocks = 0x0c
	sbFreeInodes = 0x10
	sbMounted    = 0x2c
	sbMounts     = 0x34
	sbMagic      = 0x38
	sbState      = 0x3a
	sbGroup      = 0x5a
	sbCompat     = 0x5c
	sbIncompat   = 0x60
	sbRoCompat   = 0x64
	sbPerGroup   = 0x20
	sbInodesPer  = 0x28

	magic         = 0xef53
	stateClean    = 1
	compatUsed    = compatExtAttr | compatDirIndex
	incompatUsed  = incompatFileType | incompatExtents
	roCompatUsed  = roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize
	readOnlyAtErr = 2
)

// Close writes bitmaps, group descriptors and superblocks and returns the
// file system's size in bytes. The file itself may be shorter: its owner
// truncates it to that size.
func (w *Writer) Close() (int64, error) {
	usedInodes := int64(w.inodes) - 1
	groups := (w.next + blocksPerGroup - 1) / blocksPerGroup
	blocks := w.next
	if need := (usedInodes + inodesPerGroup - 1) / inodesPerGroup; need > groups {
		groups = need
		blocks = (groups-1)*blocksPerGroup + w.metaBlocks(groups-1)
	}
	if gdtBlocks(groups) > w.gdtBlocks || blocks > maxBlocks {
		return 0, fmt.Errorf("%w: %d groups of 128 MiB", ErrTooLarge, groups)
	}
	// The table has as many blocks as its groups ask for; room that was kept
	// for more is given back as free blocks.
	used := gdtBlocks(groups)
	gdt := make([]byte, used*BlockSize)
	var free int64
	for g := range groups {
		n, err := w.writeGroup(gdt[g*descSize:], g, blocks, used)
		if err != nil {
			return 0, err
		}
		free += n
	}
	if err := writeSupers(w.f, w.superblock(blocks, groups, free), gdt, groups); err != nil {
		return 0, err
	}
	return blocks * BlockSize, nil
}

// writeSupers writes the superblock and the group descriptors, and their backups.
func writeSupers(f io.WriterAt, sb, gdt []byte, groups int64) error {
	for g := range groups {
		if !hasSuper(g) {
			continue
		}
		le.PutUint16(sb[sbGroup:], uint16(g))
		at := g * groupSize
		if g == 0 {
			at = superOffset
		}
		if _, err := f.WriteAt(sb, at); err != nil {
			return fmt.Errorf("writing the superblock: %w", err)
		}
		if _, err := f.WriteAt(gdt, g*groupSize+BlockSize); err != nil {
			return fmt.Errorf("writing the group descriptors: %w", err)
		}
	}
	return nil
}

// writeGroup writes a group's bitmaps and fills in its descriptor. It returns
// how many of the group's blocks are free.
func (w *Writer) writeGroup(desc []byte, g, blocks, gdtUsed int64) (free int64, err error) {
	maps := make([]byte, 2*BlockSize)
	u := usage{next: w.next, blocks: blocks, gdtUsed: gdtUsed, inodes: int64(w.inodes) - 1}
	if int(g) < len(w.dirs) {
		u.dirs = w.dirs[g]
	}
	free = describe(w.geometry, maps, desc, g, u)
	return free, w.writeBlock(maps, w.tableStart(g)-2)
}

// usage is what of a file system is taken.
type usage struct {
	next    int64 // blocks before this one are
	blocks  int64 // there are in all
	gdtUsed int64 // blocks that hold descriptors
	inodes  int64 // inodes up to this one are
	dirs    uint16
}

// describe fills in a group's two bitmaps and its descriptor, and returns how
// many of its blocks are free.
func describe(geo geometry, maps, desc []byte, g int64, u usage) (free int64) {
	first := g * blocksPerGroup
	used := min(max(u.next-first, geo.metaBlocks(g)), blocksPerGroup)
	setBits(maps, 0, used)
	if hasSuper(g) {
		clearBits(maps, 1+u.gdtUsed, 1+geo.gdtBlocks)
		free = geo.gdtBlocks - u.gdtUsed
	}
	// Blocks past the disk's end count as taken.
	size := min(u.blocks-first, blocksPerGroup)
	setBits(maps, size, blocksPerGroup)
	free += size - used

	inodes := min(max(u.inodes-g*inodesPerGroup, 0), inodesPerGroup)
	setBits(maps[BlockSize:], 0, inodes)
	setBits(maps[BlockSize:], inodesPerGroup, blocksPerGroup)

	table := geo.tableStart(g)
	le.PutUint32(desc[0:], uint32(table-2))
	le.PutUint32(desc[4:], uint32(table-1))
	le.PutUint32(desc[8:], uint32(table))
	le.PutUint16(desc[12:], uint16(free))
	le.PutUint16(desc[14:], uint16(inodesPerGroup-inodes))
	le.PutUint16(desc[16:], u.dirs)
	return free
}

func setBits(p []byte, from, to int64) {
	for i := from; i < to; {
		if i%8 == 0 && to-i >= 8 {
			p[i/8] = 0xff
			i += 8
			continue
		}
		p[i/8] |= 1 << (i % 8)
		i++
	}
}

func clearBits(p []byte, from, to int64) {
	for i := from; i < to; i++ {
		p[i/8] &^= 1 << (i % 8)
	}
}

func (w *Writer) superblock(blocks, groups, free int64) []byte {
	b := make([]byte, superSize)
	now, _ := diskTime(w.o.Time)
	inodes := groups * inodesPerGroup
	le.PutUint32(b[sbInodes:], uint32(inodes))
	le.PutUint32(b[sbBlocks:], uint32(blocks))
	le.PutUint32(b[sbFreeBlocks:], uint32(free))
	le.PutUint32(b[sbFreeInodes:], uint32(inodes-int64(w.inodes)+1))
	le.PutUint32(b[0x18:], 2) // block size: 1 KiB << 2
	le.PutUint32(b[0x1c:], 2)
	le.PutUint32(b[sbPerGroup:], blocksPerGroup)
	le.PutUint32(b[0x24:], blocksPerGroup)
	le.PutUint32(b[sbInodesPer:], inodesPerGroup)
	le.PutUint32(b[0x30:], now)    // written
	le.PutUint16(b[0x36:], 0xffff) // no check after so many mounts
	le.PutUint16(b[sbMagic:], magic)
	le.PutUint16(b[sbState:], stateClean)
	le.PutUint16(b[0x3c:], readOnlyAtErr)
	le.PutUint32(b[0x40:], now) // checked
	le.PutUint32(b[0x4c:], 1)   // revision with feature words
	le.PutUint32(b[0x54:], firstInode)
	le.PutUint16(b[0x58:], inodeSize)
	le.PutUint32(b[sbCompat:], compatUsed)
	le.PutUint32(b[sbIncompat:], incompatUsed)
	le.PutUint32(b[sbRoCompat:], roCompatUsed)
	copy(b[0x68:], w.o.UUID[:])
	copy(b[0xec:], w.o.HashSeed[:])
	b[0xfc] = hashHalfMD4
	le.PutUint32(b[0x100:], 0x4|0x8) // mount with user attributes and ACLs
	le.PutUint32(b[0x108:], now)     // made
	le.PutUint16(b[0x15c:], extraSize)
	le.PutUint16(b[0x15e:], extraSize)
	le.PutUint32(b[0x160:], 2) // names are hashed as unsigned characters
	return b
}
