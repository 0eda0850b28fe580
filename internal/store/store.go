// Package store keeps snapshots' objects: named byte strings, grouped by the
// UUID of the snapshot that they belong to, and names that point to UUIDs.
//
// A snapshot appears whole or not at all. Its writer fills a Draft; Commit makes
// all of the draft's objects visible in one step, the manifest (metadata.json)
// being the last that was written. Published objects never change: they can only
// be removed, together.
//
// Dir is the store in a directory. A remote store keeps the same contract with a
// conditional put of the manifest in place of the rename; storetest.Run is that
// contract as tests.
package store

import (
	"context"
	"io"
	"time"

	"github.com/google/uuid"
)

// Manifest is the object whose presence says that a snapshot is whole. It is the
// last to be written to a draft.
const Manifest = "metadata.json"

// Store keeps snapshots. All methods may be called concurrently and by several
// processes at once. Errors about a snapshot are of type *Error.
type Store interface {
	// Open opens one object of a published snapshot for reading. The error wraps
	// ErrNoSnapshot or ErrNoArtifact (both also fs.ErrNotExist) where there is none.
	Open(ctx context.Context, id uuid.UUID, artifact string) (Object, error)

	// List returns the ids of all published snapshots, ascending. It costs one
	// look at the manifest's existence for each, no reads.
	List(ctx context.Context) ([]uuid.UUID, error)

	// Begin starts a draft of the snapshot id. The error wraps ErrExist when id is
	// published. Two drafts of one id may be under way; the first to commit wins.
	// ctx bounds the draft as a whole, not only this call.
	Begin(ctx context.Context, id uuid.UUID) (Draft, error)

	// Pin keeps a published snapshot from being removed until the returned closer
	// is closed. Pins are for the machines and drafts that build on a snapshot.
	Pin(ctx context.Context, id uuid.UUID) (io.Closer, error)

	// Published returns when a snapshot was published in this store.
	Published(ctx context.Context, id uuid.UUID) (time.Time, error)

	// InUse tells whether somebody holds a pin right now.
	InUse(ctx context.Context, id uuid.UUID) (bool, error)

	// Attach puts a small object, such as a signature, beside a published snapshot,
	// in one step, replacing the one of that name. It must not be one of those that
	// were committed; see CheckAttachment for what is allowed.
	Attach(ctx context.Context, id uuid.UUID, artifact string, data []byte) error

	// Remove unpublishes a snapshot in one step, with the names that point to it,
	// and frees its space. unless, when not nil, is called after no pin is left and
	// while none can be taken; its error stops the removal and is returned as it
	// is. The error wraps ErrInUse when somebody holds a pin.
	Remove(ctx context.Context, id uuid.UUID, unless func(context.Context) error) error

	// SetName points a name to a published snapshot, replacing what it pointed to.
	SetName(ctx context.Context, name string, id uuid.UUID) error

	// Name returns what one name points to. The error wraps ErrNoName, also when its
	// snapshot is gone.
	Name(ctx context.Context, name string) (uuid.UUID, error)

	// Names returns all names of published snapshots.
	Names(ctx context.Context) (map[string]uuid.UUID, error)

	// RemoveName forgets a name, not the snapshot. The error wraps ErrNoName.
	RemoveName(ctx context.Context, name string) error
}

// Object is an open, immutable object. ReadAt may be called concurrently.
type Object interface {
	io.ReaderAt
	io.Closer
	// Size is the object's length in bytes.
	Size() int64
}

// Draft is a snapshot being written: invisible until Commit.
type Draft interface {
	// Create starts an object. Objects may be written at the same time, except
	// that the manifest comes after all others are closed, and nothing after it.
	Create(artifact string) (File, error)

	// Commit publishes all objects, durably, in one step. It needs the manifest and
	// every file closed. The error wraps ErrExist when id was published meanwhile.
	// Whatever it returns, the draft is over; after an error nothing of it is left.
	Commit(ctx context.Context) error

	// Abort gives the draft up and frees its space. After Commit it does nothing,
	// so that it can be deferred.
	Abort() error
}

// File is an object of a draft, written from start to end.
type File interface {
	io.WriteCloser
	// ReaderAt reads what was written so far.
	io.ReaderAt
	// Size is the number of bytes written so far.
	Size() int64
}
