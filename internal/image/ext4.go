package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// converter puts a tree into a file system.
type converter struct {
	ctx      context.Context
	w        *ext4.Writer
	spool    *os.File
	links    map[*rootfs.Node]int
	inodes   map[*rootfs.Node]ext4.Inode // of nodes with several names
	progress Progress
	done     int64
	total    int64
	bytes    int64 // bound of what the tree takes on the disk
}

// writeExt4 writes tree to out. What the file system has of its own making,
// its UUID and the order of its hashed names, is derived from the digest: the
// same image comes out as the same bytes everywhere.
func writeExt4(ctx context.Context, out *os.File, tree *rootfs.Tree, spool *os.File, digest string, p Progress) error {
	c := &converter{
		ctx:      ctx,
		spool:    spool,
		links:    map[*rootfs.Node]int{},
		inodes:   map[*rootfs.Node]ext4.Inode{},
		progress: p,
	}
	c.measure(tree.Root())
	sum := sha256.Sum256([]byte("spore ext4 " + formatVersion + " " + digest))
	o := ext4.Options{Time: time.Unix(0, 0), Bytes: c.bytes}
	copy(o.UUID[:], sum[:16])
	o.UUID[6] = o.UUID[6]&0x0f | 0x80 // version 8: made of whatever its maker likes
	o.UUID[8] = o.UUID[8]&0x3f | 0x80
	copy(o.HashSeed[:], sum[16:])
	c.w = ext4.NewWriter(out, o)
	p.report(PhaseBuild, 0, c.total)
	if err := c.dir(tree.Root(), ext4.Root, ext4.Root, "/"); err != nil {
		return err
	}
	size, err := c.w.Close()
	if err != nil {
		return err
	}
	if err := out.Truncate(size); err != nil {
		return fmt.Errorf("writing the file system: %w", err)
	}
	return nil
}

// measure counts the names of every node and bounds what they take.
func (c *converter) measure(dir *rootfs.Node) {
	c.bytes += ext4.BlockSize
	for _, name := range dir.Names() {
		n := dir.Child(name)
		c.bytes += 2 * int64(len(name)+16)
		if n.IsDir() {
			c.measure(n)
			continue
		}
		if c.links[n]++; c.links[n] > 1 {
			continue
		}
		c.bytes += 2 * ext4.BlockSize // attributes, a long target
		for _, d := range n.Data.Data {
			c.total += d.End - d.Start
			c.bytes += d.End - d.Start + ext4.BlockSize
		}
	}
}

// dir adds a directory and all below it. The inodes of one directory's
// entries are neighbours, and so are the files' blocks.
func (c *converter) dir(n *rootfs.Node, ino, parent ext4.Inode, at string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names := n.Names()
	entries := make([]ext4.Entry, len(names))
	for i, name := range names {
		child := n.Child(name)
		inode, seen := c.inodes[child]
		if !seen {
			inode = c.w.Reserve()
		}
		entries[i] = ext4.Entry{Name: name, Inode: inode, Mode: child.Mode}
		if seen || child.IsDir() {
			continue
		}
		if c.links[child] > 1 {
			c.inodes[child] = inode
		}
		if err := c.file(child, inode); err != nil {
			return entryError(path.Join(at, name), err)
		}
	}
	if err := c.w.AddDir(ino, parent, c.attributes(n), entries); err != nil {
		return entryError(at, err)
	}
	for i, name := range names {
		if child := n.Child(name); child.IsDir() {
			if err := c.dir(child, entries[i].Inode, ino, path.Join(at, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *converter) file(n *rootfs.Node, ino ext4.Inode) error {
	if !n.IsRegular() {
		return c.w.AddSpecial(ino, c.attributes(n))
	}
	data := make([]ext4.Data, len(n.Data.Data))
	for i, d := range n.Data.Data {
		data[i] = ext4.Data(d)
	}
	return c.w.AddFile(ino, c.attributes(n), n.Data.Size, data, &content{c, n.Data})
}

func (c *converter) attributes(n *rootfs.Node) ext4.Attributes {
	return ext4.Attributes{
		Mode:    n.Mode,
		UID:     n.UID,
		GID:     n.GID,
		ModTime: n.ModTime,
		Major:   n.Major,
		Minor:   n.Minor,
		Target:  n.Target,
		Xattrs:  n.Xattrs,
		Links:   c.links[n],
	}
}

// content reads a file from the spool, and tells how far the work is.
type content struct {
	c    *converter
	data rootfs.Content
}

func (r *content) ReadAt(p []byte, off int64) (int, error) {
	if err := r.c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.c.spool.ReadAt(p, r.data.Offset+off)
	r.c.done += int64(n)
	r.c.progress.report(PhaseBuild, r.c.done, r.c.total)
	return n, err
}
