// Package expose shows a disk to those who use it: to QEMU over NBD, to Firecracker as a FUSE file, and to the kernel, which mounts it, by either. An Overlay
// is a copy-on-write disk that leaves what lies below untouched.
//
// A Disk is what an exposure serves. An Overlay is the Disk of a running machine: reads come from an immutable base (a snapshot's root file
// system, or an Overlay frozen earlier) until a block is written; written blocks live in a sparse file without a name, so that nothing is left
// behind however the process ends.
package expose

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the unit, in bytes, in which an Overlay keeps account of what was written.
const BlockSize = 4096

// ErrFrozen says that a write met a disk that has become read-only (see Overlay.Freeze).
var ErrFrozen = errors.New("the disk is frozen")

// Base is what an Overlay stands on: immutable bytes of a known size. *block.Reader is one, and so is a frozen Overlay.
// ReadAt must allow concurrent calls.
type Base interface {
	io.ReaderAt
	// Size is in bytes.
	Size() int64
}

// Mapper tells holes from data.
type Mapper interface {
	// Extent describes the bytes from offset on: the next length bytes (at least 1, at most limit) are all of one kind; hole is true if they
	// are known to read as zeros and to take no space. offset must lie inside the disk and limit must be positive.
	Extent(offset, limit int64) (length int64, hole bool)
}

// Disk is a block device: fixed size, any alignment, safe for concurrent use.
//
// Two operations that overlap and are under way at once may take effect in either order; operations that don't overlap never disturb each other,
// even inside one block. A write past the end fails with an error that wraps unix.ENOSPC and changes nothing.
type Disk interface {
	Base
	io.WriterAt
	Mapper
	// Flush returns when all writes that returned before it are as durable as the disk can make them.
	Flush(ctx context.Context) error
	// Zero makes length bytes from offset read as zeros, at no more cost than writing them. The space may be given back if allowHole is set;
	// otherwise a later write there does not run out of space.
	Zero(offset, length int64, allowHole bool) error
	// Trim says that the bytes are of no more use. Whole blocks inside the range read as zeros afterwards; other bytes keep their value.
	Trim(offset, length int64) error
}

// Fault is a failure of the disk under an exposure. The guest sees only an errno; the Fault tells the owner the rest, such as the
// *block.CorruptError that names a damaged frame (use errors.As).
type Fault struct {
	// Op is read, write, zero, trim or flush.
	Op string
	// Offset and Length are the bytes asked for; both 0 for flush.
	Offset, Length int64
	Err            error
}

func (f *Fault) Error() string {
	if f.Op == "flush" {
		return fmt.Sprintf("disk flush: %v", f.Err)
	}
	return fmt.Sprintf("disk %s of %d bytes at %d: %v", f.Op, f.Length, f.Offset, f.Err)
}

func (f *Fault) Unwrap() error { return f.Err }
