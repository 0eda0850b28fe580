// Package ext4 writes ext4 file systems in one pass, the same bytes for the
// same input.
//
// The layout is the plain one: 4 KiB blocks, groups of 128 MiB that each begin
// with their own bitmaps and inode table, sparse backups of the superblock.
// Files lie one after the other in the order in which they were added. There
// are no free blocks but those of groups that only their inodes ask for; grow
// the file system with [Grow] to get some.
//
// There is no journal. Machines' disks are captured frozen, so there is never
// one to replay, and a journal would turn every small change into several
// written blocks, which every snapshot would then carry. For the same reason
// there are no checksums that the guest would have to keep up: the block layer
// verifies what it reads.
package ext4

const (
	// BlockSize is the file system's block size in bytes.
	BlockSize = 4096

	blocksPerGroup = 8 * BlockSize
	inodeSize      = 256
	inodesPerGroup = 8192 // one for 16 KiB, mke2fs's own measure
	tableBlocks    = inodesPerGroup * inodeSize / BlockSize
	descSize       = 32
	descsPerBlock  = BlockSize / descSize
	groupSize      = int64(blocksPerGroup) * BlockSize

	// Group descriptors have room to become as many as this without anything
	// having to move: 1 TiB of disk. What isn't used of it are free blocks.
	growGroups = 8192

	rootInode  = 2
	firstInode = 11

	// the part of an inode behind the first 128 bytes that has fixed fields
	extraSize   = 32
	inlineAttrs = 128 + extraSize

	maxLinks      = 65000
	maxSymlink    = 4095
	inlineSymlink = 59
	maxBlocks     = 1<<32 - 1
)

// features
const (
	compatExtAttr  = 0x8
	compatDirIndex = 0x20

	incompatFileType = 0x2
	incompatExtents  = 0x40

	roSparseSuper = 0x1
	roLargeFile   = 0x2
	roHugeFile    = 0x8
	roDirNlink    = 0x20
	roExtraIsize  = 0x40
)

// inode flags
const (
	flagIndex   = 0x1000
	flagExtents = 0x80000
)

const (
	modeType    = 0o170000
	modeFifo    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// hasSuper reports whether a group begins with a copy of the superblock and
// of the group descriptors: groups 0, 1 and the powers of 3, 5 and 7.
func hasSuper(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// geometry is what the places of all metadata follow from.
type geometry struct {
	gdtBlocks int64 // kept for group descriptors behind each superblock
}

// metaBlocks is how many blocks of a group come before its data.
func (g geometry) metaBlocks(group int64) int64 {
	n := int64(2 + tableBlocks)
	if hasSuper(group) {
		n += 1 + g.gdtBlocks
	}
	return n
}

// tableStart is the first block of a group's inode table; the bitmaps are the two before it.
func (g geometry) tableStart(group int64) int64 {
	return group*blocksPerGroup + g.metaBlocks(group) - tableBlocks
}

// gdtBlocks is how many blocks the descriptors of so many groups fill.
func gdtBlocks(groups int64) int64 {
	return (groups + descsPerBlock - 1) / descsPerBlock
}
