package store

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/google/uuid"
)

// What can be wrong, to be tested with errors.Is.
var (
	// ErrNoSnapshot: no snapshot of that id is published. Is fs.ErrNotExist too.
	ErrNoSnapshot = fmt.Errorf("no such snapshot%w", silent{fs.ErrNotExist})
	// ErrNoArtifact: the snapshot is there, the object is not. Is fs.ErrNotExist too.
	ErrNoArtifact = fmt.Errorf("the file is missing%w", silent{fs.ErrNotExist})
	// ErrNoName: nothing has that name. Is fs.ErrNotExist too.
	ErrNoName = fmt.Errorf("no such name%w", silent{fs.ErrNotExist})
	// ErrExist: a snapshot of that id is published already. Is fs.ErrExist too.
	ErrExist = fmt.Errorf("a snapshot with this id exists already%w", silent{fs.ErrExist})
	// ErrInUse: somebody holds a pin on the snapshot.
	ErrInUse = errors.New("in use by a running machine or an unfinished snapshot")
	// ErrFull: no space is left. Is syscall.ENOSPC too.
	ErrFull = fmt.Errorf("no space left on the store's file system%w", silent{syscall.ENOSPC})
	// ErrOver: the draft was committed or aborted before.
	ErrOver = errors.New("the draft is over")
)

// silent makes an error answer errors.Is without adding to the message.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

// Error names the snapshot, and the artifact where there is one, that an
// operation failed on.
type Error struct {
	Op       string    // what was being done: "opening", "publishing", …
	ID       uuid.UUID // the snapshot
	Artifact string    // "" where the snapshot as a whole is meant
	Err      error
}

// Error reads "opening memfile of snapshot <id>: <why>".
func (e *Error) Error() string {
	if e.Artifact == "" {
		return fmt.Sprintf("%s snapshot %s: %v", e.Op, e.ID, e.Err)
	}
	return fmt.Sprintf("%s %s of snapshot %s: %v", e.Op, e.Artifact, e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fail wraps err, nil for nil, telling apart what users can act on.
func fail(op string, id uuid.UUID, artifact string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, ID: id, Artifact: artifact, Err: explain(err)}
}

// explain makes a full disk speak of the remedy.
func explain(err error) error {
	if errors.Is(err, ErrFull) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (free some, for instance by removing snapshots, or use another store): %w", ErrFull, err)
	}
	return err
}
