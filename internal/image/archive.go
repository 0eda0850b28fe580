package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// maxMembers bounds the search for a file in an archive of an image's parts.
const maxMembers = 100_000

// archive is files in a tar archive, which may be compressed. A file is found
// by reading what lies before it; in an archive that isn't compressed the
// contents are skipped.
type archive string

func (a archive) open(ctx context.Context, name string) (io.ReadCloser, error) {
	// Old tools store a layer that two images share as a link.
	for range 4 {
		r, link, err := a.find(ctx, name)
		if err != nil || link == "" {
			return r, err
		}
		name = link
	}
	return nil, fmt.Errorf("%w: %s: links lead nowhere", ErrCorrupt, name)
}

func (a archive) find(ctx context.Context, name string) (r io.ReadCloser, link string, err error) {
	f, err := openRegular(string(a))
	if err != nil {
		return nil, "", err
	}
	in, plain, err := seekable(f)
	if err != nil {
		f.Close()
		return nil, "", fmt.Errorf("reading %s: %w", string(a), err)
	}
	member := &member{Reader: nil, end: func() { plain(); f.Close() }}
	tr := tar.NewReader(in)
	for i := 0; ; i++ {
		if err = ctx.Err(); err != nil {
			break
		}
		if i > maxMembers {
			err = fmt.Errorf("%w: more than %d files in %s", ErrLimit, maxMembers, string(a))
			break
		}
		var hdr *tar.Header
		hdr, err = tr.Next()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: no %s in %s", ErrNotFound, name, string(a))
			break
		}
		if err != nil {
			err = fmt.Errorf("%w: reading %s: %w", ErrCorrupt, string(a), err)
			break
		}
		if path.Clean(strings.TrimLeft(hdr.Name, "/")) != name {
			continue
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			member.Reader = tr
			return member, "", nil
		case tar.TypeSymlink:
			member.Close()
			return nil, path.Join(path.Dir(name), hdr.Linkname), nil
		case tar.TypeLink:
			member.Close()
			return nil, path.Clean(hdr.Linkname), nil
		}
	}
	member.Close()
	return nil, "", err
}

// seekable returns f itself if it isn't compressed, so that tar can skip what
// it doesn't read, or what f decompresses to.
func seekable(f io.ReadSeeker) (io.Reader, func(), error) {
	r, err := decompress(f)
	if err != nil {
		return nil, nil, err
	}
	if isPlain(r) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, nil, err
		}
		return f, func() {}, nil
	}
	return r, func() { r.Close() }, nil
}

// member is a file in an archive that Close lets go of.
type member struct {
	io.Reader
	end func()
}

func (m *member) Close() error {
	m.end()
	return nil
}
