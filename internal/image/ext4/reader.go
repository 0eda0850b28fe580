package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Limits of what a Reader takes in: far above what images have, they bound what a
// hostile file system can make it allocate or do.
const (
	maxEntries  = 1 << 22   // names
	maxDepth    = 256       // directories in one another
	maxDirBytes = 256 << 20 // of one directory
	maxExtents  = 1 << 20   // of one file
	maxTree     = 5         // levels of extents, the format's own limit
)

// ErrCorrupt is wrapped by errors about a file system that breaks its format's
// rules or a limit.
var ErrCorrupt = errors.New("damaged file system")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// Reader reads an ext4 file system, one made here or by others, that was frozen or
// unmounted cleanly: it replays no journal.
type Reader struct {
	r                   io.ReaderAt
	blockSize           int64
	blocks              int64
	inodes, perGroup    int64
	inodeSize, descSize int64
	firstData           int64 // block that the first group starts with
	descriptors         []byte
	tableBlock          int64 // the block of an inode table in tableData; -1 for none
	tableData           []byte
}

const (
	incompatRecover  = 0x4
	incompat64Bit    = 0x80
	incompatMetaBG   = 0x10
	incompatInline   = 0x8000
	incompatEncrypt  = 0x10000
	flagInlineData   = 0x10000000
	maxDescriptors   = 256 << 20 // bytes of group descriptors
	unwrittenExtents = 1 << 15
)

// NewReader reads the superblock of a file system of at most size bytes.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	var sb [superSize]byte
	if err := readFull(r, sb[:], superOffset); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	if le.Uint16(sb[sbMagic:]) != 0xef53 {
		return nil, corrupt("it is no ext4 file system")
	}
	logSize := le.Uint32(sb[0x18:])
	if logSize > 6 {
		return nil, corrupt("blocks of 2^%d KiB", logSize)
	}
	incompat := le.Uint32(sb[0x60:])
	f := &Reader{
		r: r, blockSize: 1024 << logSize, inodes: int64(le.Uint32(sb[sbInodes:])), perGroup: int64(le.Uint32(sb[0x28:])),
		blocks: int64(le.Uint32(sb[sbBlocks:])), inodeSize: int64(le.Uint16(sb[0x58:])), descSize: descSize,
		firstData: int64(le.Uint32(sb[0x14:])), tableBlock: -1,
	}
	if incompat&incompat64Bit != 0 {
		f.blocks |= int64(le.Uint32(sb[0x150:])) << 32
		f.descSize = int64(le.Uint16(sb[0xfe:]))
	}
	blocksPerGroup := int64(le.Uint32(sb[0x20:]))
	switch {
	case incompat&(incompatMetaBG|incompatInline|incompatEncrypt) != 0:
		return nil, corrupt("features %#x are not supported", incompat)
	case incompat&incompatRecover != 0:
		return nil, corrupt("its journal was not replayed: it is in use, or was not unmounted")
	case f.blocks <= f.firstData || f.blocks > size/f.blockSize:
		return nil, corrupt("%d blocks of %d bytes on a disk of %d", f.blocks, f.blockSize, size)
	case f.inodeSize < 128 || f.inodeSize > f.blockSize || f.inodeSize&(f.inodeSize-1) != 0:
		return nil, corrupt("inodes of %d bytes", f.inodeSize)
	case f.descSize < descSize || f.descSize > f.blockSize:
		return nil, corrupt("group descriptors of %d bytes", f.descSize)
	case blocksPerGroup == 0 || f.perGroup == 0:
		return nil, corrupt("groups of nothing")
	}
	groups := (f.blocks - f.firstData + blocksPerGroup - 1) / blocksPerGroup
	if groups*f.descSize > maxDescriptors || groups*f.descSize > size || f.inodes > groups*f.perGroup {
		return nil, corrupt("%d groups, %d inodes", groups, f.inodes)
	}
	f.descriptors = make([]byte, groups*f.descSize)
	if err := readFull(r, f.descriptors, (f.firstData+1)*f.blockSize); err != nil {
		return nil, fmt.Errorf("reading the group descriptors: %w", err)
	}
	return f, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Node is a name in a file system and what it stands for.
type Node struct {
	Path     string // absolute
	Inode    Inode
	Mode     uint32 // type and permission bits as in st_mode
	UID, GID uint32
	Links    int
	Size     int64
	Target   string // of a symbolic link
	Device   uint64 // of a device, as it is stored
	ModTime  int64  // seconds since 1970
	Extents  []Extent
}

// Extent is a part of a file that is not a hole.
type Extent struct {
	Offset int64 // in the file, bytes
	Length int64 // bytes, whole blocks
	Disk   int64 // where it lies on the disk, bytes
}

// IsRegular, IsDir and IsSymlink tell types apart.
func (n *Node) IsRegular() bool { return n.Mode&modeType == modeRegular }

// IsDir tells whether it is a directory.
func (n *Node) IsDir() bool { return n.Mode&modeType == modeDir }

// IsSymlink tells whether it is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&modeType == modeSymlink }

// Walk calls visit for every name below the root, directories before what is in
// them, each directory's entries in the order of their names. An error of visit
// ends the walk and is returned.
func (f *Reader) Walk(ctx context.Context, visit func(*Node) error) error {
	root, err := f.file("/", rootInode)
	if err != nil {
		return err
	}
	if !root.IsDir() {
		return corrupt("its root is no directory")
	}
	w := walker{fs: f, visit: visit, seen: map[Inode]bool{rootInode: true}}
	return w.dir(ctx, root, 0)
}

type walker struct {
	fs      *Reader
	visit   func(*Node) error
	seen    map[Inode]bool // directories
	entries int
}

func (w *walker) dir(ctx context.Context, dir *Node, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return corrupt("directories are nested deeper than %d", maxDepth)
	}
	entries, err := w.fs.entries(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if w.entries++; w.entries > maxEntries {
			return corrupt("it has more than %d names", maxEntries)
		}
		child, err := w.fs.file(path.Join(dir.Path, e.name), e.inode)
		if err != nil {
			return err
		}
		if child.IsDir() && w.seen[child.Inode] {
			return corrupt("the directory %q has two names", child.Path)
		}
		if err := w.visit(child); err != nil {
			return err
		}
		if child.IsDir() {
			w.seen[child.Inode] = true
			if err := w.dir(ctx, child, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

type dirEntry struct {
	name  string
	inode Inode
}

// entries reads a directory. Its index, if it has one, looks like empty entries.
func (f *Reader) entries(dir *Node) ([]dirEntry, error) {
	if dir.Size > maxDirBytes {
		return nil, corrupt("the directory %q has %d bytes", dir.Path, dir.Size)
	}
	var out []dirEntry
	block := make([]byte, f.blockSize)
	for _, x := range dir.Extents {
		for off := int64(0); off < x.Length && x.Offset+off < dir.Size; off += f.blockSize {
			if err := readFull(f.r, block, x.Disk+off); err != nil {
				return nil, fmt.Errorf("reading the directory %q: %w", dir.Path, err)
			}
			var err error
			if out, err = f.blockEntries(out, block, dir.Path); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(out, func(a, b dirEntry) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// blockEntries adds the entries of one block of the directory at path.
func (f *Reader) blockEntries(out []dirEntry, block []byte, path string) ([]dirEntry, error) {
	for b := block; len(b) >= 8; {
		inode, length, n := Inode(le.Uint32(b)), int(le.Uint16(b[4:])), int(b[6])
		if f.blockSize == 64<<10 && (length == 65535 || length == 0) {
			length = 64 << 10
		}
		if length < 8 || length > len(b) || length%4 != 0 || inode != 0 && (n == 0 || n+8 > length) {
			return nil, corrupt("an entry of the directory %q has %d bytes", path, length)
		}
		if name := string(b[8 : 8+min(n, length-8)]); inode != 0 && name != "." && name != ".." {
			if strings.ContainsAny(name, "/\x00") {
				return nil, corrupt("the name %q in the directory %q", name, path)
			}
			out = append(out, dirEntry{name, inode})
		}
		b = b[length:]
	}
	return out, nil
}

// inode reads the raw inode.
func (f *Reader) inode(ino Inode) ([]byte, error) {
	if ino == 0 || int64(ino) > f.inodes {
		return nil, corrupt("inode %d of %d", ino, f.inodes)
	}
	index := int64(ino) - 1
	desc := f.descriptors[index/f.perGroup*f.descSize:][:f.descSize]
	table := int64(le.Uint32(desc[8:]))
	if f.descSize >= 64 {
		table |= int64(le.Uint32(desc[0x28:])) << 32
	}
	at := index % f.perGroup * f.inodeSize
	block := table + at/f.blockSize
	if block >= f.blocks {
		return nil, corrupt("inode %d lies beyond the disk", ino)
	}
	if block != f.tableBlock {
		if f.tableData == nil {
			f.tableData = make([]byte, f.blockSize)
		}
		f.tableBlock = -1
		if err := readFull(f.r, f.tableData, block*f.blockSize); err != nil {
			return nil, fmt.Errorf("reading inode %d: %w", ino, err)
		}
		f.tableBlock = block
	}
	return f.tableData[at%f.blockSize:][:f.inodeSize], nil
}

func (f *Reader) file(name string, ino Inode) (*Node, error) {
	b, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	file := &Node{
		Path: name, Inode: ino, Mode: uint32(le.Uint16(b)), Links: int(le.Uint16(b[0x1a:])), ModTime: int64(int32(le.Uint32(b[0x10:]))),
		UID:  uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:  uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7a:]))<<16,
		Size: int64(le.Uint32(b[4:])) | int64(le.Uint32(b[0x6c:]))<<32,
	}
	if file.Size < 0 {
		return nil, corrupt("%q has %d bytes", name, file.Size)
	}
	flags, data := le.Uint32(b[0x20:]), [60]byte(b[0x28:])
	switch file.Mode & modeType {
	case modeSymlink:
		return file, f.readTarget(file, flags, data)
	case modeChar, modeBlock:
		file.Device = le.Uint64(data[:])
	case modeRegular, modeDir:
		switch {
		case flags&flagInlineData != 0:
			return nil, corrupt("%q is kept inside its inode", name)
		case flags&flagExtents != 0:
			err = f.extents(file, data[:], 0, maxTree+1)
		case file.Size > 0 || data != [60]byte{}:
			return nil, corrupt("%q has no extents", name)
		}
	}
	return file, err
}

func (f *Reader) readTarget(file *Node, flags uint32, data [60]byte) error {
	if file.Size > maxSymlink {
		return corrupt("the symbolic link %q has %d bytes", file.Path, file.Size)
	}
	if flags&flagExtents == 0 {
		if file.Size > inlineSymlink {
			return corrupt("the symbolic link %q has %d bytes and no block", file.Path, file.Size)
		}
		file.Target = string(data[:file.Size])
		return nil
	}
	if err := f.extents(file, data[:], 0, maxTree+1); err != nil {
		return err
	}
	if len(file.Extents) != 1 || file.Extents[0].Offset != 0 || file.Extents[0].Length < file.Size {
		return corrupt("the symbolic link %q is in pieces", file.Path)
	}
	p := make([]byte, file.Size)
	if err := readFull(f.r, p, file.Extents[0].Disk); err != nil {
		return fmt.Errorf("reading the symbolic link %q: %w", file.Path, err)
	}
	file.Target = string(p)
	return nil
}

// extents adds what a node of the extent tree says, which must lie after what was
// added before.
func (f *Reader) extents(file *Node, node []byte, from int64, above int) error {
	entries, depth := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != extentMagic || 12+entries*12 > len(node) || depth >= above {
		return corrupt("the extents of %q", file.Path)
	}
	for i := range entries {
		e := node[12+i*12:][:12]
		first := int64(le.Uint32(e)) * f.blockSize
		if first < from {
			return corrupt("the extents of %q overlap", file.Path)
		}
		if depth > 0 {
			block := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
			if block >= f.blocks {
				return corrupt("the extents of %q lie beyond the disk", file.Path)
			}
			child := make([]byte, f.blockSize)
			if err := readFull(f.r, child, block*f.blockSize); err != nil {
				return fmt.Errorf("reading the extents of %q: %w", file.Path, err)
			}
			if err := f.extents(file, child, first, depth); err != nil {
				return err
			}
		} else if err := f.extent(file, e, first); err != nil {
			return err
		}
		if n := len(file.Extents); n > 0 {
			from = max(from, file.Extents[n-1].Offset+file.Extents[n-1].Length)
		}
	}
	return nil
}

// extent adds one, unless it is one that was only reserved.
func (f *Reader) extent(file *Node, e []byte, first int64) error {
	length, start := int64(le.Uint16(e[4:])), int64(le.Uint32(e[8:]))|int64(le.Uint16(e[6:]))<<32
	if length > unwrittenExtents {
		return nil
	}
	if length == 0 || start+length > f.blocks || len(file.Extents) == maxExtents {
		return corrupt("the extents of %q", file.Path)
	}
	file.Extents = append(file.Extents, Extent{Offset: first, Length: length * f.blockSize, Disk: start * f.blockSize})
	return nil
}

// ReadAt reads a regular file's content.
func (f *Reader) ReadAt(file *Node, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("reading at a negative offset")
	}
	n := int(min(int64(len(p)), max(file.Size-off, 0)))
	clear(p[:n])
	for _, x := range file.Extents {
		from, to := max(x.Offset, off), min(x.Offset+x.Length, off+int64(n))
		if from >= to {
			continue
		}
		if err := readFull(f.r, p[from-off:to-off], x.Disk+from-x.Offset); err != nil {
			return 0, fmt.Errorf("reading %q: %w", file.Path, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
