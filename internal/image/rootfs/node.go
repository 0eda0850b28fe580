// Package rootfs flattens the layers of a container image into one tree of
// files, the way a runtime's stacked file system would show them.
//
// Only metadata is kept in memory; what regular files hold goes to a [Spool]
// and is referred to by its place there.
package rootfs

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Node is one inode of a tree. Hard links are several names of one Node.
type Node struct {
	Mode         uint32 // type and permission bits as in st_mode
	UID, GID     uint32
	ModTime      time.Time
	Major, Minor uint32            // of a device
	Target       string            // of a symbolic link
	Xattrs       map[string]string // full names
	Data         Content           // of a regular file

	children map[string]*Node // of a directory
	layer    int              // that wrote the node last
	link     *hardLink        // a name whose target had not come yet
}

// Content is what a regular file holds.
type Content struct {
	Offset int64   // of the file's first byte in the spool
	Size   int64   // in bytes, holes included
	Data   []Range // what is not a hole, ascending; starts are multiples of 4096
}

// Range is a part of a file, End not included.
type Range struct{ Start, End int64 }

type hardLink struct {
	entry  string // the archive's spelling of the link's own name
	target []string
	busy   bool // being resolved: seen again means that links point at one another
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether n is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink reports whether n is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// Names returns the names in directory n, sorted.
func (n *Node) Names() []string {
	return slices.Sorted(maps.Keys(n.children))
}

// Child returns the node called name in directory n, or nil.
func (n *Node) Child(name string) *Node { return n.children[name] }

// newDir returns a directory that no archive describes. One in a set-group-ID
// directory has that bit and the group, too.
func newDir(layer int, parent *Node) *Node {
	n := &Node{
		Mode:     unix.S_IFDIR | 0o755,
		ModTime:  time.Unix(0, 0),
		children: map[string]*Node{},
		layer:    layer,
	}
	if parent != nil && parent.Mode&unix.S_ISGID != 0 {
		n.Mode |= unix.S_ISGID
		n.GID = parent.GID
	}
	return n
}
