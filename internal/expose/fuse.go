package expose

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fuseRequest is the largest read or write that the kernel may ask for, in bytes.
const fuseRequest = 1 << 20

// FUSEFile is a disk to be seen as a file.
type FUSEFile struct {
	Name     string
	Base     Base
	Writable bool // then Base is a Disk
	// Paged says that the file is memory, to be mapped and touched at random: the kernel then asks for single pages, and reads nothing ahead in
	// any file of this server.
	Paged bool
}

// FUSEServer serves disks as files of a FUSE file system that is mounted nowhere: each file is there as a descriptor alone, which can be passed to
// the kernel (a loop device) and to other processes. When the last descriptor is closed, or the server's process dies, the file system is gone.
//
// A process must not touch pages of its own files, by mapping them or reading them: its garbage collector could wait for itself. So serve in a
// process of its own, or hand the descriptors on and leave them alone.
type FUSEServer struct {
	server *fuse.Server
	root   int               // the mount; -1: none
	files  map[string]int    // descriptors
	nodes  map[string]uint64 // numbers by which the kernel knows the files
	ended  chan struct{}
	once   sync.Once
}

// ServeFUSE serves files until Close. It needs /dev/fuse and the right to mount. trace, which may be nil, is told every request.
func ServeFUSE(files []FUSEFile, trace *log.Logger) (*FUSEServer, error) {
	tree := &fuseTree{RawFileSystem: fuse.NewDefaultRawFileSystem(), files: files, inode: rand.Uint64N(1<<62) + 1<<32}
	s := &FUSEServer{root: -1, files: map[string]int{}, nodes: map[string]uint64{}, ended: make(chan struct{})}
	for i, f := range files {
		s.nodes[f.Name] = uint64(i) + 2
		if _, writable := f.Base.(Disk); f.Writable && !writable {
			return nil, fmt.Errorf("serving %s over FUSE: it can't be written to", f.Name)
		}
	}
	if err := s.open(tree, trace); err != nil {
		s.Close()
		return nil, fmt.Errorf("serving files over FUSE: %w", err)
	}
	return s, nil
}

// open makes the file system and opens its files.
func (s *FUSEServer) open(tree *fuseTree, trace *log.Logger) error {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	root, err := detachedMount(device)
	if err != nil {
		unix.Close(device)
		return err
	}
	s.root = root
	ahead := fuseRequest
	for _, f := range tree.files {
		if f.Paged {
			ahead = 1 // none: less than a page, and 0 means the default
		}
	}
	o := &fuse.MountOptions{
		MaxWrite: fuseRequest, MaxReadAhead: ahead, MaxBackground: 64, DisableXAttrs: true, DisableSplice: true,
		Name: "spore", FsName: "spore", Logger: log.New(io.Discard, "", 0),
	}
	if trace != nil {
		o.Debug, o.Logger = true, trace
	}
	if s.server, err = fuse.NewServer(tree, "/dev/fd/"+strconv.Itoa(device), o); err != nil {
		unix.Close(device)
		return err
	}
	go func() {
		defer close(s.ended)
		s.server.Serve()
	}()
	for _, f := range tree.files {
		mode := unix.O_RDONLY
		if f.Writable {
			mode = unix.O_RDWR
		}
		// Not by package os, which would have Go's poller ask this very process.
		fd, err := ignoringEINTR(func() (int, error) { return unix.Openat(root, f.Name, mode|unix.O_CLOEXEC, 0) })
		if err != nil {
			return &os.PathError{Op: "open", Path: f.Name, Err: err}
		}
		s.files[f.Name] = fd
	}
	if ahead == fuseRequest {
		readAhead(s.files)
	}
	return nil
}

// detachedMount makes the file system of a FUSE connection, as a mount that is attached nowhere, and returns a descriptor of its root.
func detachedMount(device int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making a FUSE file system: %w (it takes root)", err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"source", "spore"}, {"subtype", "spore"}, {"fd", strconv.Itoa(device)}, {"rootmode", "40000"},
		{"user_id", strconv.Itoa(os.Geteuid())}, {"group_id", strconv.Itoa(os.Getegid())}, {"max_read", strconv.Itoa(fuseRequest)},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("making a FUSE file system: setting %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "allow_other"); err != nil {
		return -1, fmt.Errorf("making a FUSE file system: allowing others: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making a FUSE file system: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("making a FUSE file system: %w", err)
	}
	return root, nil
}

// readAhead lets the kernel read far ahead, as far as we may tell it.
func readAhead(files map[string]int) {
	for _, fd := range files {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
			_ = os.WriteFile(bdi, []byte(strconv.Itoa(fuseRequest>>10)), 0)
		}
	}
}

// FD returns the descriptor of a file, which stays the server's.
func (s *FUSEServer) FD(name string) (int, bool) {
	fd, ok := s.files[name]
	return fd, ok
}

// Tree returns a descriptor of the file system's mount, for those who attach it, which can be done once. It stays the server's.
func (s *FUSEServer) Tree() int { return s.root }

// Store puts what a file holds at offset into the kernel's cache, so that nobody has to ask for it. It waits for reads of the same pages that are under
// way, so whoever answers them must not wait for it.
func (s *FUSEServer) Store(name string, offset int64, p []byte) error {
	node, ok := s.nodes[name]
	if !ok {
		return &os.PathError{Op: "store", Path: name, Err: os.ErrNotExist}
	}
	for len(p) > 0 {
		n := min(len(p), fuseRequest)
		if status := s.server.InodeNotifyStoreCache(node, offset, p[:n]); status != fuse.OK {
			return &os.PathError{Op: "store", Path: name, Err: syscall.Errno(status)}
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// Close closes the server's descriptors. Files that others hold are served on until they close them: wait with Done.
func (s *FUSEServer) Close() {
	s.once.Do(func() {
		for _, fd := range s.files {
			unix.Close(fd)
		}
		if s.root >= 0 {
			unix.Close(s.root)
		}
		if s.server == nil {
			close(s.ended)
		}
	})
}

// Done is closed when no descriptor is left.
func (s *FUSEServer) Done() <-chan struct{} { return s.ended }

// fuseTree is a folder of files. The folder is node 1, the files are the nodes from 2 on.
type fuseTree struct {
	fuse.RawFileSystem
	files []FUSEFile
	inode uint64 // of node 0: at random, so that a file is told from all others in the memory map of a process
}

func (t *fuseTree) attr(node uint64, out *fuse.Attr) fuse.Status {
	*out = fuse.Attr{Ino: t.inode + node, Nlink: 1, Blksize: BlockSize, Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}}
	switch {
	case node == fuse.FUSE_ROOT_ID:
		out.Mode = unix.S_IFDIR | 0o700
	case node < 2 || node-2 >= uint64(len(t.files)):
		return fuse.ENOENT
	default:
		out.Mode = unix.S_IFREG | 0o600
		out.Size = uint64(t.files[node-2].Base.Size())
		out.Blocks = (out.Size + 511) / 512
	}
	return fuse.OK
}

// forever is how long, in seconds, the kernel may believe what it was told.
const forever = 1 << 30

// Lookup implements fuse.RawFileSystem.
func (t *fuseTree) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	for i, f := range t.files {
		if f.Name == name {
			out.NodeId, out.EntryValid, out.AttrValid = uint64(i)+2, forever, forever
			return t.attr(out.NodeId, &out.Attr)
		}
	}
	return fuse.ENOENT
}

// GetAttr implements fuse.RawFileSystem.
func (t *fuseTree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	return t.attr(in.NodeId, &out.Attr)
}

// Access implements fuse.RawFileSystem.
func (t *fuseTree) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// Open implements fuse.RawFileSystem. Who may not write may still open for it, as QEMU does.
func (t *fuseTree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (t *fuseTree) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := t.files[in.NodeId-2].Base.ReadAt(buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (t *fuseTree) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f := t.files[in.NodeId-2]
	if !f.Writable {
		return 0, fuse.EPERM
	}
	n, err := f.Base.(Disk).WriteAt(data, int64(in.Offset))
	if errors.Is(err, unix.ENOSPC) {
		return uint32(n), fuse.Status(unix.ENOSPC)
	} else if err != nil {
		return uint32(n), fuse.EIO
	}
	return uint32(n), fuse.OK
}

// Fsync implements fuse.RawFileSystem. What is written is thrown away in the end, or kept by those who own the disk.
func (t *fuseTree) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Fallocate implements fuse.RawFileSystem: a loop device passes on what a file system has freed.
func (t *fuseTree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f := t.files[in.NodeId-2]
	disk, ok := f.Base.(Disk)
	switch {
	case !f.Writable || !ok:
		return fuse.EPERM
	case in.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if err := disk.Zero(int64(in.Offset), int64(in.Length), in.Mode&unix.FALLOC_FL_PUNCH_HOLE != 0); err != nil {
		return fuse.EIO
	}
	return fuse.OK
}
