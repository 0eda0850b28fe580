package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/image/ext4"
)

// Grow makes dst a copy of the ext4 file src with room to write: size bytes,
// a multiple of 4096, of which the file system takes all. What is not written
// stays a hole. dst must not exist; it is gone again after an error. The
// error wraps [ErrTooSmall] and says what is needed if src does not fit.
//
// The same src and size make the same bytes. src must be as [Builder.Ext4]
// returned it, never mounted.
func Grow(ctx context.Context, src, dst string, size int64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making a disk of %d bytes: %w", size, err)
		}
	}()
	if size <= 0 || size%ext4.BlockSize != 0 {
		return fmt.Errorf("the size is not a positive multiple of %d", ext4.BlockSize)
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	have, err := in.Stat()
	if err != nil {
		return err
	}
	if size < have.Size() {
		return fmt.Errorf("%w: it takes at least %d bytes", ErrTooSmall, have.Size())
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(dst)
		}
	}()
	if err := out.Truncate(size); err != nil {
		return err
	}
	if err := copySparse(ctx, out, in, have.Size()); err != nil {
		return err
	}
	if size == have.Size() {
		return nil
	}
	return ext4.Grow(out, size)
}

// copySparse copies what is not a hole.
func copySparse(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes up to the end
		}
		if err != nil {
			return fmt.Errorf("looking for data: %w", err)
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("looking for a hole: %w", err)
		}
		// Pieces, so that an end of ctx is noticed.
		for start < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(end-start, 64<<20)
			if _, err := src.Seek(start, io.SeekStart); err != nil {
				return err
			}
			if _, err := dst.Seek(start, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.CopyN(dst, src, n); err != nil {
				return fmt.Errorf("copying: %w", err)
			}
			start += n
		}
		at = end
	}
	return nil
}
