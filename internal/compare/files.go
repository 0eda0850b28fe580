package compare

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/snapshot"
)

// Change is what became of something.
type Change string

// The changes.
const (
	Added   Change = "added"
	Removed Change = "removed"
	Changed Change = "changed"
)

// File is a name that differs. Times alone are no difference.
type File struct {
	Path   string   `json:"path"`
	Change Change   `json:"change"`
	Type   string   `json:"type"`           // file, dir, symlink, other: of B, or of A where it was removed
	SizeA  int64    `json:"size_a"`         // 0 where it was added
	SizeB  int64    `json:"size_b"`         // 0 where it was removed
	What   []string `json:"what,omitempty"` // of a changed one: content, mode, owner, target, type, device
}

// files compares the file systems on two disks. Data that lies at the same place
// on both and was not stored anew, as far as disk tells, is not read.
func files(ctx context.Context, a, b *snapshot.Snapshot, disk *Image) ([]File, error) {
	older, err := tree(ctx, a.Disk())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ID(), err)
	}
	newer, err := tree(ctx, b.Disk())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.ID(), err)
	}
	c := comparison{a: older, b: newer, stored: []Region{{0, b.Disk().Size()}}, same: map[[2]ext4.Inode]bool{}}
	if disk != nil {
		c.stored = regions(disk.Diff)
	}
	return c.run(ctx)
}

// listing is a file system and what is in it, by path.
type listing struct {
	fs    *ext4.Reader
	nodes []*ext4.Node
}

func tree(ctx context.Context, disk *block.Reader) (listing, error) {
	fs, err := ext4.NewReader(disk, disk.Size())
	if err != nil {
		return listing{}, err
	}
	l := listing{fs: fs}
	err = fs.Walk(ctx, func(n *ext4.Node) error {
		l.nodes = append(l.nodes, n)
		return nil
	})
	// Not the order of the walk: "a-b" comes before "a/c".
	slices.SortFunc(l.nodes, func(x, y *ext4.Node) int { return strings.Compare(x.Path, y.Path) })
	return l, err
}

type comparison struct {
	a, b   listing
	stored []Region               // of the disk, anew
	same   map[[2]ext4.Inode]bool // contents compared before
}

func (c *comparison) run(ctx context.Context) ([]File, error) {
	out := []File{}
	x, y := c.a.nodes, c.b.nodes
	for len(x) > 0 || len(y) > 0 {
		switch order := first(x, y); {
		case order < 0:
			out = append(out, File{Path: x[0].Path, Change: Removed, Type: kind(x[0]), SizeA: size(x[0])})
			x = x[1:]
		case order > 0:
			out = append(out, File{Path: y[0].Path, Change: Added, Type: kind(y[0]), SizeB: size(y[0])})
			y = y[1:]
		default:
			what, err := c.what(ctx, x[0], y[0])
			if err != nil {
				return nil, err
			}
			if len(what) > 0 {
				out = append(out, File{Path: y[0].Path, Change: Changed, Type: kind(y[0]), SizeA: size(x[0]), SizeB: size(y[0]), What: what})
			}
			x, y = x[1:], y[1:]
		}
	}
	return out, nil
}

// first tells which of two sorted lists has the lower path in front.
func first(x, y []*ext4.Node) int {
	switch {
	case len(x) == 0:
		return 1
	case len(y) == 0:
		return -1
	}
	return strings.Compare(x[0].Path, y[0].Path)
}

func kind(n *ext4.Node) string {
	switch {
	case n.IsRegular():
		return "file"
	case n.IsDir():
		return "dir"
	case n.IsSymlink():
		return "symlink"
	}
	return "other"
}

// size is that of what a user calls the content.
func size(n *ext4.Node) int64 {
	if n.IsDir() {
		return 0
	}
	return n.Size
}

const permissions = 0o7777

// what tells in which respects two nodes differ.
func (c *comparison) what(ctx context.Context, a, b *ext4.Node) ([]string, error) {
	if a.Mode&^permissions != b.Mode&^permissions {
		return []string{"type"}, nil
	}
	var out []string
	if a.IsRegular() {
		same, err := c.content(ctx, a, b)
		if err != nil {
			return nil, err
		}
		if !same {
			out = append(out, "content")
		}
	}
	if a.Mode != b.Mode {
		out = append(out, "mode")
	}
	if a.UID != b.UID || a.GID != b.GID {
		out = append(out, "owner")
	}
	if a.Target != b.Target {
		out = append(out, "target")
	}
	if a.Device != b.Device {
		out = append(out, "device")
	}
	return out, nil
}

// content tells whether two files hold the same bytes.
func (c *comparison) content(ctx context.Context, a, b *ext4.Node) (bool, error) {
	if a.Size != b.Size {
		return false, nil
	}
	if slices.Equal(a.Extents, b.Extents) && !slices.ContainsFunc(b.Extents, c.storedAnew) {
		return true, nil
	}
	key := [2]ext4.Inode{a.Inode, b.Inode} // names of one file are compared once
	if same, known := c.same[key]; known {
		return same, nil
	}
	same, err := c.compare(ctx, a, b)
	if err == nil {
		c.same[key] = same
	}
	return same, err
}

// storedAnew tells whether B's disk has other bytes in an extent than A's.
func (c *comparison) storedAnew(x ext4.Extent) bool {
	i := sort.Search(len(c.stored), func(i int) bool { return c.stored[i].Offset+c.stored[i].Length > x.Disk })
	return i < len(c.stored) && c.stored[i].Offset < x.Disk+x.Length
}

// compareSize is how much of two files is held at once, in bytes of each.
const compareSize = 1 << 20

// compare reads two files of the same size, as far as either has data.
func (c *comparison) compare(ctx context.Context, a, b *ext4.Node) (bool, error) {
	p, q := make([]byte, min(compareSize, a.Size)), make([]byte, min(compareSize, a.Size))
	for off := int64(0); off < a.Size; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		off = min(nextData(a, off), nextData(b, off))
		n, err := c.a.fs.ReadAt(a, p, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if _, err := c.b.fs.ReadAt(b, q[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
		off += max(int64(n), 1)
	}
	return true, nil
}

// nextData is where, from off on, a file has data again; its size if nowhere.
func nextData(n *ext4.Node, off int64) int64 {
	i, _ := slices.BinarySearchFunc(n.Extents, off, func(x ext4.Extent, off int64) int { return cmp.Compare(x.Offset+x.Length, off+1) })
	if i == len(n.Extents) {
		return n.Size
	}
	return min(max(n.Extents[i].Offset, off), n.Size)
}
