package rootfs

import (
	"errors"
	"fmt"
	"strconv"
)

// What can be wrong with an entry. An EntryError wraps one of these.
var (
	ErrEscape       = errors.New("path leads out of the image")
	ErrLoop         = errors.New("too many symbolic links on the way")
	ErrNotDirectory = errors.New("parent is not a directory")
	ErrHardLink     = errors.New("bad hard link")
	ErrLimit        = errors.New("limit exceeded")
	ErrUnsupported  = errors.New("not supported")
	ErrCorrupt      = errors.New("archive is damaged")
)

// EntryError says which entry of an archive can't be part of a file system, and why.
type EntryError struct {
	Entry string // name as the archive spells it; may hold any bytes
	Err   error  // wraps one of the errors above
}

func (e *EntryError) Error() string {
	name := e.Entry
	// A hostile name must not be able to flood or steer a terminal.
	const most = 160
	if len(name) > most {
		name = name[:most] + "…"
	}
	return fmt.Sprintf("entry %s: %v", strconv.QuoteToGraphic(name), e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

func entryError(name string, kind error, format string, args ...any) error {
	return &EntryError{Entry: name, Err: fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))}
}
