package image

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// EntryError says which entry of an image's layers can't be unpacked. It
// wraps one of the errors below.
type EntryError = rootfs.EntryError

// Why an entry can't be unpacked.
var (
	ErrEscape       = rootfs.ErrEscape
	ErrLoop         = rootfs.ErrLoop
	ErrNotDirectory = rootfs.ErrNotDirectory
	ErrHardLink     = rootfs.ErrHardLink
	ErrLimit        = rootfs.ErrLimit
	ErrUnsupported  = rootfs.ErrUnsupported
	ErrCorrupt      = rootfs.ErrCorrupt
)

// Why an image can't be had.
var (
	ErrNotFound  = errors.New("not found")
	ErrAuth      = errors.New("credentials needed")
	ErrReference = errors.New("not an image reference")
	ErrTooSmall  = errors.New("too small for the image")
)

// Error names the image that something went wrong with. Every error of a
// Builder is one.
type Error struct {
	Image string // the reference as given
	Err   error
	Hint  string // what to do about it; may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("image %s: %v", e.Image, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// hintError carries a hint up to where the image is named.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// fail names the image in err, once.
func fail(ref string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Image == ref {
		return err
	}
	e := &Error{Image: ref, Err: err}
	if h, ok := errors.AsType[*hintError](err); ok {
		e.Hint = h.hint
	}
	return e
}

// DigestError says that bytes are not those that their digest promised.
type DigestError struct {
	What string // "layer", "manifest", "config", …
	Want string
	Got  string // digest, or a count of bytes
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s is not what its digest says: want %s, got %s", e.What, e.Want, e.Got)
}

// PlatformError says that an image is not made for the platform asked for.
type PlatformError struct {
	Want Platform
	Have []string // "os/arch", sorted
}

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("not made for %s, nor for any other platform", e.Want)
	}
	return fmt.Sprintf("not made for %s; available: %s", e.Want, strings.Join(e.Have, ", "))
}

// entryError names the entry that the file system can't hold, unless the
// fault is not the entry's.
func entryError(name string, err error) error {
	for _, kind := range []error{ext4.ErrTooLarge, ext4.ErrAttributes, ext4.ErrLinks} {
		if errors.Is(err, kind) {
			return &EntryError{Entry: name, Err: fmt.Errorf("%w: %w", ErrLimit, err)}
		}
	}
	return err
}
