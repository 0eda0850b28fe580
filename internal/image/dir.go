package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// resolveDir takes a directory as an image. Its digest is that of the archive
// that it packs into, so equal directories, times included, are one image.
func (b *Builder) resolveDir(ctx context.Context, dir string, p Platform) (*Image, error) {
	if dir == "" {
		return nil, fmt.Errorf("%w: no directory", ErrReference)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, openError(err)
	}
	if !info.IsDir() {
		return nil, &hintError{fmt.Errorf("%w: %s is not a directory", ErrReference, dir), "an archive is named as tar:FILE"}
	}
	h := sha256.New()
	if err := packDir(ctx, dir, h); err != nil {
		return nil, err
	}
	digest := digestOf(h)
	return &Image{
		Digest:   digest,
		Platform: p,
		layers: []layer{{
			name:   "directory " + dir,
			size:   -1,
			diffID: digest,
			open: func(ctx context.Context) (io.ReadCloser, error) {
				r, w := io.Pipe()
				go func() { w.CloseWithError(packDir(ctx, dir, w)) }()
				return r, nil
			},
		}},
	}, nil
}

// packDir writes a directory as an archive: sorted by name, hard links kept,
// sockets left out.
func packDir(ctx context.Context, dir string, w io.Writer) error {
	// The directory itself may be given by a symbolic link; below it none is followed.
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), seen: map[[2]uint64]string{}}
	if err := p.pack(root, "./"); err != nil {
		return fmt.Errorf("packing %s: %w", dir, err)
	}
	return p.tw.Close()
}

type packer struct {
	ctx  context.Context
	tw   *tar.Writer
	seen map[[2]uint64]string // device and inode to the first name
}

func (p *packer) pack(path, name string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	hdr, err := p.header(path, name, &st)
	if err != nil || hdr == nil {
		return err
	}
	if hdr.Typeflag == tar.TypeReg {
		return p.file(path, hdr)
	}
	if err := p.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeDir {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := p.pack(path+"/"+e.Name(), hdr.Name+e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// header describes a file; nil leaves it out.
func (p *packer) header(path, name string, st *unix.Stat_t) (*tar.Header, error) {
	hdr := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: timeOf(st.Mtim),
	}
	id := [2]uint64{uint64(st.Dev), st.Ino}
	if first, ok := p.seen[id]; ok {
		hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
		return hdr, nil
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		if !strings.HasSuffix(name, "/") {
			hdr.Name += "/"
		}
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
		if hdr.Linkname, err = os.Readlink(path); err != nil {
			return nil, err
		}
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil, nil // a socket is of use only to the process that made it
	}
	if st.Nlink > 1 && hdr.Typeflag != tar.TypeDir {
		p.seen[id] = name
	}
	hdr.PAXRecords, err = readXattrs(path)
	return hdr, err
}

func (p *packer) file(path string, hdr *tar.Header) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.tw.WriteHeader(hdr); err != nil {
		return err
	}
	n, err := io.CopyN(p.tw, &cancellable{p.ctx, f}, hdr.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s shrank from %d to %d bytes while it was read", path, hdr.Size, n)
	}
	return err
}

// readXattrs returns a file's extended attributes as records of an archive.
func readXattrs(path string) (map[string]string, error) {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	records := map[string]string{}
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if name == "" || strings.Contains(name, "=") {
			continue // an archive has no way to spell it
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		records["SCHILY.xattr."+name] = string(value[:n])
	}
	return records, nil
}
