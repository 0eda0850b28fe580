package ext4

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Options decide what is not given by the files.
type Options struct {
	UUID     [16]byte
	HashSeed [16]byte  // of directory indexes
	Time     time.Time // of creation and last check; zero is the start of 1970
	// Bytes bounds what the files take: their sizes rounded up to blocks,
	// directories included. The table of groups is made large enough for it,
	// and Close fails if it was too low.
	Bytes int64
}

// Inode is the number of an inode.
type Inode uint32

// Root is the inode of the root directory.
const Root Inode = rootInode

// Writer writes a file system. Its methods may be called in any order, but
// every inode that was reserved must be added exactly once. After an error
// the Writer is of no use.
type Writer struct {
	geometry
	f      io.WriterAt
	o      Options
	next   int64 // block to allocate next
	inodes Inode // next to reserve
	dirs   []uint16
	hash   hasher
	buf    []byte
}

// ErrTooLarge says that the files do not fit the file system that was asked for.
var ErrTooLarge = errors.New("too large for the file system")

// NewWriter returns a Writer to f, an empty file.
func NewWriter(f io.WriterAt, o Options) *Writer {
	w := &Writer{f: f, o: o, inodes: firstInode, buf: make([]byte, 1<<20)}
	w.hash = newHasher(o.HashSeed)
	// Half as much again, for what the data's bound does not count: inode
	// tables, bitmaps, extent trees.
	groups := (o.Bytes+o.Bytes/2)/groupSize + 2
	w.gdtBlocks = max(gdtBlocks(groups), gdtBlocks(growGroups))
	w.next = w.metaBlocks(0)
	return w
}

// Reserve returns the number of a new inode.
func (w *Writer) Reserve() Inode {
	w.inodes++
	return w.inodes - 1
}

// alloc returns the next n blocks, in as few pieces as the groups allow.
func (w *Writer) alloc(n int64) ([]span, error) {
	var spans []span
	for n > 0 {
		if w.next%blocksPerGroup == 0 {
			w.next += w.metaBlocks(w.next / blocksPerGroup)
		}
		end := (w.next/blocksPerGroup + 1) * blocksPerGroup
		k := min(n, end-w.next)
		if w.next+k > maxBlocks {
			return nil, ErrTooLarge
		}
		spans = append(spans, span{w.next, k})
		w.next += k
		n -= k
	}
	return spans, nil
}

// span is a piece of the disk, in blocks.
type span struct{ start, len int64 }

func (w *Writer) writeBlock(p []byte, block int64) error {
	if _, err := w.f.WriteAt(p, block*BlockSize); err != nil {
		return fmt.Errorf("writing the file system: %w", err)
	}
	return nil
}

// writeBlocks writes p, whole blocks, over spans.
func (w *Writer) writeBlocks(p []byte, spans []span) error {
	for _, s := range spans {
		n := s.len * BlockSize
		if err := w.writeBlock(p[:n], s.start); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
