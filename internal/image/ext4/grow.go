package ext4

import (
	"errors"
	"fmt"
	"io"
)

// ErrForeign says that a file system was not written by a Writer, or was
// mounted since.
var ErrForeign = errors.New("not a file system as it was made here")

// File is what a file system lies in.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// minGroup is how many blocks for data the last group must have to be worth
// its metadata.
const minGroup = 64

// MaxSize is the largest size that Grow reaches, in bytes.
const MaxSize = growGroups * groupSize

// Grow makes a file system take size bytes, a multiple of BlockSize. The file
// system is one that a Writer wrote and that nobody mounted since; f must
// already have the size and read as zeros from the file system's end on. If
// that leaves a last group too small to be of use, its bytes stay unused.
func Grow(f File, size int64) error {
	sb := make([]byte, superSize)
	if _, err := f.ReadAt(sb, superOffset); err != nil {
		return fmt.Errorf("reading the superblock: %w", err)
	}
	if !pristine(sb) {
		return ErrForeign
	}
	blocks, newBlocks := int64(le.Uint32(sb[sbBlocks:])), size/BlockSize
	if size%BlockSize != 0 || newBlocks < blocks {
		return fmt.Errorf("the size %d is not a larger multiple of %d", size, BlockSize)
	}
	g, err := newGrower(f, blocks)
	if err != nil {
		return err
	}
	groups := (blocks + blocksPerGroup - 1) / blocksPerGroup
	newGroups := (newBlocks + blocksPerGroup - 1) / blocksPerGroup
	if last := newGroups - 1; last >= groups && newBlocks-last*blocksPerGroup < g.metaBlocks(last)+minGroup {
		newGroups = last
		newBlocks = last * blocksPerGroup
	}
	if gdtBlocks(newGroups) > g.gdtBlocks {
		return fmt.Errorf("%w: grows to %d bytes at most", ErrTooLarge, g.gdtBlocks*descsPerBlock*groupSize)
	}
	free := int64(le.Uint32(sb[sbFreeBlocks:]))
	more, err := g.grow(groups, newGroups, newBlocks)
	if err != nil {
		return err
	}
	inodes := (newGroups - groups) * inodesPerGroup
	le.PutUint32(sb[sbBlocks:], uint32(newBlocks))
	le.PutUint32(sb[sbFreeBlocks:], uint32(free+more))
	le.PutUint32(sb[sbInodes:], le.Uint32(sb[sbInodes:])+uint32(inodes))
	le.PutUint32(sb[sbFreeInodes:], le.Uint32(sb[sbFreeInodes:])+uint32(inodes))
	return writeSupers(f, sb, g.gdt, newGroups)
}

func pristine(sb []byte) bool {
	return le.Uint16(sb[sbMagic:]) == magic &&
		le.Uint16(sb[sbState:]) == stateClean &&
		le.Uint32(sb[sbMounted:]) == 0 && le.Uint16(sb[sbMounts:]) == 0 &&
		le.Uint32(sb[sbCompat:]) == compatUsed &&
		le.Uint32(sb[sbIncompat:]) == incompatUsed &&
		le.Uint32(sb[sbRoCompat:]) == roCompatUsed &&
		le.Uint32(sb[sbPerGroup:]) == blocksPerGroup &&
		le.Uint32(sb[sbInodesPer:]) == inodesPerGroup &&
		le.Uint32(sb[sbBlocks:]) > 0
}

// grower changes a file system's groups.
type grower struct {
	geometry
	f      File
	gdt    []byte
	blocks int64 // before
}

func newGrower(f File, blocks int64) (*grower, error) {
	groups := (blocks + blocksPerGroup - 1) / blocksPerGroup
	g := &grower{f: f, gdt: make([]byte, gdtBlocks(groups)*BlockSize), blocks: blocks}
	if _, err := f.ReadAt(g.gdt, BlockSize); err != nil {
		return nil, fmt.Errorf("reading the group descriptors: %w", err)
	}
	// How much was kept for descriptors shows in what comes behind them.
	g.gdtBlocks = int64(le.Uint32(g.gdt[8:])) - 3
	if g.gdtBlocks < gdtBlocks(groups) || g.gdtBlocks > blocksPerGroup/2 || blocks < g.metaBlocks(0) {
		return nil, ErrForeign
	}
	return g, nil
}

// grow makes the old groups whole and adds new ones. It returns how many
// blocks are free that were not before.
func (g *grower) grow(groups, newGroups, newBlocks int64) (free int64, err error) {
	old, used := gdtBlocks(groups), gdtBlocks(newGroups)
	g.gdt = append(g.gdt, make([]byte, (used-old)*BlockSize)...)
	for group := range groups {
		last := group == groups-1
		if !last && (old == used || !hasSuper(group)) {
			continue
		}
		n, err := g.change(group, func(bitmap []byte) (n int64) {
			if hasSuper(group) {
				// Descriptors spread into what was kept for them.
				setBits(bitmap, 1+old, 1+used)
				n -= used - old
			}
			if last {
				from := g.blocks - group*blocksPerGroup
				to := min(newBlocks-group*blocksPerGroup, blocksPerGroup)
				clearBits(bitmap, from, to)
				n += to - from
			}
			return n
		})
		if err != nil {
			return 0, err
		}
		free += n
	}
	for group := groups; group < newGroups; group++ {
		n, err := g.add(group, newBlocks, used)
		if err != nil {
			return 0, err
		}
		free += n
	}
	return free, nil
}

// change lets do change a group's bitmap of blocks; do returns how many more
// of them are free.
func (g *grower) change(group int64, do func(bitmap []byte) int64) (int64, error) {
	desc := g.gdt[group*descSize:]
	at := int64(le.Uint32(desc)) * BlockSize
	if at != (g.tableStart(group)-2)*BlockSize {
		return 0, ErrForeign
	}
	bitmap := make([]byte, BlockSize)
	if _, err := g.f.ReadAt(bitmap, at); err != nil {
		return 0, fmt.Errorf("reading a bitmap: %w", err)
	}
	free := do(bitmap)
	le.PutUint16(desc[12:], uint16(int64(le.Uint16(desc[12:]))+free))
	if _, err := g.f.WriteAt(bitmap, at); err != nil {
		return 0, fmt.Errorf("writing a bitmap: %w", err)
	}
	return free, nil
}

// add makes an empty group. Its inode table is zeros already.
func (g *grower) add(group, blocks, gdtUsed int64) (free int64, err error) {
	maps := make([]byte, 2*BlockSize)
	free = describe(g.geometry, maps, g.gdt[group*descSize:], group, usage{
		next:    g.metaBlocks(group) + group*blocksPerGroup,
		blocks:  blocks,
		gdtUsed: gdtUsed,
	})
	if _, err := g.f.WriteAt(maps, (g.tableStart(group)-2)*BlockSize); err != nil {
		return 0, fmt.Errorf("writing a bitmap: %w", err)
	}
	return free, nil
}
