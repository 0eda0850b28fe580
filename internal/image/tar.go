package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// resolveTar takes an archive of a whole root file system as an image:
// ".wh." names in it are ordinary. Its digest is that of the file.
func (b *Builder) resolveTar(ctx context.Context, path string, p Platform) (*Image, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: no file", ErrReference)
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, &cancellable{ctx, f})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	digest := digestOf(h)
	return &Image{
		Digest:   digest,
		Platform: p,
		layers: []layer{{
			name:   "archive " + path,
			digest: digest,
			size:   size,
			open: func(context.Context) (io.ReadCloser, error) {
				return openRegular(path)
			},
		}},
	}, nil
}

// openRegular opens a file that must not be a directory, or a pipe that
// nobody writes to.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrReference, path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func timeOf(t unix.Timespec) time.Time {
	return time.Unix(int64(t.Sec), int64(t.Nsec))
}
