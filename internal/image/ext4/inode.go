package ext4

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Attributes are an inode's, whatever its type.
type Attributes struct {
	Mode         uint32 // type and permission bits as in st_mode
	UID, GID     uint32
	ModTime      time.Time // the other times are set to it
	Major, Minor uint32    // of a device
	Target       string    // of a symbolic link
	Xattrs       map[string]string
	Links        int // names, of what is not a directory
}

// Data is a part of a file that is not a hole, End not included. Start is a
// multiple of BlockSize.
type Data struct{ Start, End int64 }

// ErrLinks says that a file has more names than the file system can count.
var ErrLinks = errors.New("too many hard links")

// inode is what an inode's fields are filled from, besides its Attributes.
type inode struct {
	size   int64
	blocks int64 // taken on the disk, in file system blocks
	flags  uint32
	links  int
	block  [60]byte
}

// AddFile adds a regular file of size bytes. What it holds is read from r,
// at the places that data lists in ascending order; the rest is holes.
func (w *Writer) AddFile(ino Inode, a Attributes, size int64, data []Data, r io.ReaderAt) error {
	n := inode{size: size, flags: flagExtents, links: a.Links}
	var list []extent
	for _, d := range data {
		first, count := d.Start/BlockSize, (d.End-d.Start+BlockSize-1)/BlockSize
		if d.Start%BlockSize != 0 || d.End > size || count <= 0 {
			return fmt.Errorf("adding inode %d: bad range %d to %d of %d", ino, d.Start, d.End, size)
		}
		if first+count > maxBlocks {
			return ErrTooLarge
		}
		spans, err := w.alloc(count)
		if err != nil {
			return err
		}
		if err := w.copy(spans, io.NewSectionReader(r, d.Start, d.End-d.Start)); err != nil {
			return err
		}
		list = extents(list, first, spans)
		n.blocks += count
	}
	if err := w.mapBlocks(&n, list); err != nil {
		return err
	}
	return w.put(ino, a, n)
}

// copy fills spans from r; the last block's rest is zeros.
func (w *Writer) copy(spans []span, r io.Reader) error {
	for _, s := range spans {
		for at, left := s.start, s.len; left > 0; {
			k := min(left, int64(len(w.buf)/BlockSize))
			p := w.buf[:k*BlockSize]
			n, err := io.ReadFull(r, p)
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("reading a file: %w", err)
			}
			if int64(n) <= (k-1)*BlockSize {
				return fmt.Errorf("reading a file: %w", io.ErrUnexpectedEOF)
			}
			clear(p[n:])
			if err := w.writeBlock(p, at); err != nil {
				return err
			}
			at += k
			left -= k
		}
	}
	return nil
}

func (w *Writer) mapBlocks(n *inode, list []extent) error {
	root, used, err := w.extentTree(list)
	n.block = root
	n.blocks += used
	return err
}

// AddSpecial adds a symbolic link, a device, a pipe or a socket.
func (w *Writer) AddSpecial(ino Inode, a Attributes) error {
	n := inode{links: a.Links}
	switch a.Mode & modeType {
	case modeSymlink:
		if len(a.Target) == 0 || len(a.Target) > maxSymlink {
			return fmt.Errorf("%w: a symbolic link of %d bytes", ErrTooLarge, len(a.Target))
		}
		n.size = int64(len(a.Target))
		if len(a.Target) <= inlineSymlink {
			copy(n.block[:], a.Target)
			break
		}
		spans, err := w.alloc(1)
		if err != nil {
			return err
		}
		p := make([]byte, BlockSize)
		copy(p, a.Target)
		if err := w.writeBlocks(p, spans); err != nil {
			return err
		}
		n.flags, n.blocks = flagExtents, 1
		if err := w.mapBlocks(&n, extents(nil, 0, spans)); err != nil {
			return err
		}
	case modeChar, modeBlock:
		if a.Major < 256 && a.Minor < 256 {
			le.PutUint32(n.block[0:], a.Major<<8|a.Minor)
		} else {
			le.PutUint32(n.block[4:], a.Minor&0xff|a.Major<<8|a.Minor&^0xff<<12)
		}
	}
	return w.put(ino, a, n)
}

// put writes an inode to its place in the table.
func (w *Writer) put(ino Inode, a Attributes, n inode) error {
	if n.links > maxLinks {
		return fmt.Errorf("%w: %d", ErrLinks, n.links)
	}
	var b [inodeSize]byte
	attrBlock, err := w.placeAttrs(b[:], a.Xattrs)
	if err != nil {
		return err
	}
	if attrBlock != 0 {
		n.blocks++
	}
	sec, extra := diskTime(a.ModTime)
	sectors := uint64(n.blocks) * (BlockSize / 512)
	le.PutUint16(b[0x00:], uint16(a.Mode))
	le.PutUint16(b[0x02:], uint16(a.UID))
	le.PutUint32(b[0x04:], uint32(n.size))
	le.PutUint32(b[0x08:], sec)
	le.PutUint32(b[0x0c:], sec)
	le.PutUint32(b[0x10:], sec)
	le.PutUint16(b[0x18:], uint16(a.GID))
	le.PutUint16(b[0x1a:], uint16(n.links))
	le.PutUint32(b[0x1c:], uint32(sectors))
	le.PutUint32(b[0x20:], n.flags)
	copy(b[0x28:], n.block[:])
	le.PutUint32(b[0x68:], uint32(attrBlock))
	le.PutUint32(b[0x6c:], uint32(n.size>>32))
	le.PutUint16(b[0x74:], uint16(sectors>>32))
	le.PutUint16(b[0x78:], uint16(a.UID>>16))
	le.PutUint16(b[0x7a:], uint16(a.GID>>16))
	le.PutUint16(b[0x80:], extraSize)
	le.PutUint32(b[0x84:], extra)
	le.PutUint32(b[0x88:], extra)
	le.PutUint32(b[0x8c:], extra)
	le.PutUint32(b[0x90:], sec)
	le.PutUint32(b[0x94:], extra)

	index := int64(ino) - 1
	at := w.tableStart(index/inodesPerGroup)*BlockSize + index%inodesPerGroup*inodeSize
	if _, err := w.f.WriteAt(b[:], at); err != nil {
		return fmt.Errorf("writing an inode: %w", err)
	}
	return nil
}

// diskTime splits a time into 32 bits of seconds and a word of nanoseconds
// with two more bits of seconds.
func diskTime(t time.Time) (sec, extra uint32) {
	if t.IsZero() {
		return 0, 0
	}
	s := t.Unix()
	sec = uint32(s)
	epoch := uint32((s-int64(int32(sec)))>>32) & 3
	return sec, uint32(t.Nanosecond())<<2 | epoch
}
