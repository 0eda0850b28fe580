package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	// Names under this prefix are notes that an old stacked file system kept for itself.
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Layer says how to read one archive.
type Layer struct {
	// Whiteouts makes ".wh." names delete what lower layers hold. Without it
	// they are ordinary names, as in an archive that is no layer.
	Whiteouts bool
}

// record is an entry that was read and waits for the layer's end.
type record struct {
	name  string // the archive's spelling
	parts []string
	node  *Node
	link  []string // target of a hard link; then node is nil
}

// Apply reads an uncompressed tar stream to the end of the archive and stacks
// it on the tree. It does not read what follows the archive's end mark.
// After an error the tree is not to be used.
//
// Whiteouts act on lower layers only, wherever they stand in the archive, so
// they are carried out first.
func (t *Tree) Apply(ctx context.Context, r io.Reader, l Layer) error {
	t.layer++
	var adds, hides []record
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err, "after "+fmt.Sprint(t.entries)+" entries")
		}
		if t.entries++; t.entries > t.limits.Entries {
			return entryError(hdr.Name, ErrLimit, "more than %d entries", t.limits.Entries)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		rec, err := t.read(hdr, tr)
		if err != nil {
			return err
		}
		if l.Whiteouts {
			hide, skip, err := whiteout(rec)
			if err != nil {
				return err
			}
			if hide {
				hides = append(hides, rec)
			}
			if hide || skip {
				continue
			}
		}
		adds = append(adds, rec)
	}
	dirs := map[string]bool{} // that the layer has itself
	if len(hides) > 0 {
		for _, rec := range adds {
			if rec.node != nil && rec.node.IsDir() {
				dirs[strings.Join(rec.parts, "/")] = true
			}
		}
	}
	for _, rec := range hides {
		if err := t.hide(rec, dirs); err != nil {
			return err
		}
	}
	for i, rec := range adds {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := t.put(rec); err != nil {
			return err
		}
	}
	return t.settle(ctx)
}

// readError tells a damaged archive from a source that failed: the latter
// (a network, a digest that does not match) has more to say.
func readError(err error, where string) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, tar.ErrInsecurePath) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, where, err)
	}
	return err
}

// whiteout reports whether rec deletes something, or is a note to skip.
func whiteout(rec record) (hide, skip bool, err error) {
	for i, part := range rec.parts {
		if !strings.HasPrefix(part, whiteoutPrefix) {
			continue
		}
		last := i == len(rec.parts)-1
		switch {
		case part == whiteoutOpaque && last:
			return true, false, nil
		case strings.HasPrefix(part, whiteoutMeta):
			return false, true, nil
		case !last:
			continue
		}
		switch part[len(whiteoutPrefix):] {
		case "", ".", "..":
			return false, false, entryError(rec.name, ErrCorrupt, "a whiteout of no name")
		}
		return true, false, nil
	}
	return false, false, nil
}

// hide carries out a whiteout. dirs are the directories that its layer has: one
// that takes the place of something else, a link to another directory say,
// has nothing of a lower layer in it that could be hidden.
func (t *Tree) hide(rec record, dirs map[string]bool) error {
	parent := rec.parts[:len(rec.parts)-1]
	for i := range parent {
		if !dirs[strings.Join(parent[:i+1], "/")] {
			continue
		}
		lower, err := t.find(rec.name, parent[:i+1])
		if err != nil {
			return err
		}
		if lower == nil || !lower.IsDir() {
			return nil
		}
	}
	dir, err := t.walk(rec.name, parent, find)
	if err != nil || dir == nil {
		return err
	}
	base := rec.parts[len(rec.parts)-1]
	if base == whiteoutOpaque {
		clear(dir.children)
		return nil
	}
	delete(dir.children, strings.TrimPrefix(base, whiteoutPrefix))
	return nil
}

// read makes a record of one entry and spools what it holds.
func (t *Tree) read(hdr *tar.Header, r io.Reader) (record, error) {
	rec := record{name: hdr.Name}
	if len(hdr.Name) > t.limits.Path {
		return rec, entryError(hdr.Name, ErrLimit, "a path of %d bytes; at most %d", len(hdr.Name), t.limits.Path)
	}
	if len(hdr.Linkname) > t.limits.Path {
		return rec, entryError(hdr.Name, ErrLimit, "a target of %d bytes; at most %d", len(hdr.Linkname), t.limits.Path)
	}
	if strings.ContainsRune(hdr.Name, 0) || strings.ContainsRune(hdr.Linkname, 0) {
		return rec, entryError(hdr.Name, ErrCorrupt, "a zero byte in a name")
	}
	var err error
	if rec.parts, err = split(hdr.Name, hdr.Name); err != nil {
		return rec, err
	}
	if len(rec.parts) > t.limits.Depth {
		return rec, entryError(hdr.Name, ErrLimit, "deeper than %d directories", t.limits.Depth)
	}
	if hdr.Typeflag == tar.TypeLink {
		if rec.link, err = split(hdr.Name, hdr.Linkname); err != nil {
			return rec, err
		}
		return rec, nil
	}
	if rec.node, err = t.node(hdr); err != nil {
		return rec, err
	}
	if !rec.node.IsRegular() {
		return rec, nil
	}
	if hdr.Size > t.limits.Bytes-t.bytes {
		return rec, entryError(hdr.Name, ErrLimit, "its %d bytes make the image larger than %d", hdr.Size, t.limits.Bytes)
	}
	t.bytes += hdr.Size
	rec.node.Data, err = t.spool.add(r, hdr.Size)
	if err != nil {
		return rec, &EntryError{Entry: hdr.Name, Err: readError(err, "reading its content")}
	}
	return rec, nil
}

// node translates a header. The header's times other than the modification
// time are dropped: extracting sets them to the time of extraction, which
// would make every image unlike the last.
func (t *Tree) node(hdr *tar.Header) (*Node, error) {
	n := &Node{ModTime: clampTime(hdr.ModTime), layer: t.layer}
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > 1<<32-2 || int64(hdr.Gid) > 1<<32-2 {
		return nil, entryError(hdr.Name, ErrCorrupt, "owner %d:%d is no user and group", hdr.Uid, hdr.Gid)
	}
	n.UID, n.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	n.Mode = uint32(hdr.Mode) & 0o7777
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		n.Mode |= unix.S_IFREG
	case tar.TypeDir:
		n.Mode |= unix.S_IFDIR
		n.children = map[string]*Node{}
	case tar.TypeSymlink:
		n.Mode = unix.S_IFLNK | 0o777
		n.Target = hdr.Linkname
		if n.Target == "" {
			return nil, entryError(hdr.Name, ErrCorrupt, "a symbolic link to nothing")
		}
	case tar.TypeFifo:
		n.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		n.Mode |= unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			n.Mode = n.Mode&^unix.S_IFMT | unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor < 0 || hdr.Devminor > 0xfffff {
			return nil, entryError(hdr.Name, ErrCorrupt, "device %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		n.Major, n.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	default:
		return nil, entryError(hdr.Name, ErrUnsupported, "entry type %q", hdr.Typeflag)
	}
	return n, t.xattrs(n, hdr)
}

// xattrs takes the extended attributes that the kernel would take: tar warns
// of the others and goes on.
func (t *Tree) xattrs(n *Node, hdr *tar.Header) error {
	const prefix = "SCHILY.xattr."
	size := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok || !settable(n, name) {
			continue
		}
		size += len(name) + len(value)
		if len(name) > maxName || size > t.limits.Xattrs {
			return entryError(hdr.Name, ErrLimit, "its extended attributes take more than %d bytes", t.limits.Xattrs)
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = value
	}
	return nil
}

// settable reports whether the kernel lets name be set on n.
func settable(n *Node, name string) bool {
	if strings.ContainsRune(name, 0) {
		return false
	}
	for _, space := range []string{"security.", "trusted."} {
		if rest, ok := strings.CutPrefix(name, space); ok {
			return rest != ""
		}
	}
	if rest, ok := strings.CutPrefix(name, "user."); ok {
		return rest != "" && (n.IsDir() || n.IsRegular())
	}
	switch name {
	case "system.posix_acl_access":
		return !n.IsSymlink()
	case "system.posix_acl_default":
		return n.IsDir()
	}
	return false
}

// clampTime keeps t within what ext4 can store, as the kernel does. The last
// quarter of that, from the year 2310 on, is left out: e2fsck takes it for a
// mistake of old kernels and wants it repaired.
func clampTime(t time.Time) time.Time {
	const oldest, newest = -1 << 31, 2<<32 + 1<<31 - 1
	switch s := t.Unix(); {
	case t.IsZero():
		return time.Unix(0, 0)
	case s <= oldest:
		return time.Unix(oldest, 0)
	case s >= newest:
		return time.Unix(newest, 0)
	}
	return t
}
