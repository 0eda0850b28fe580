package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store/flock"
)

// MaxAttachment is the most that may be attached as one object, in bytes.
const MaxAttachment = 64 << 10

// The suffixes keep attachments from taking the place of what was committed.
const (
	signatureSuffix = ".sig"
	prefetchSuffix  = ".prefetch"
)

// CheckAttachment tells whether data may be attached under a name.
func CheckAttachment(artifact string, data []byte) error {
	if err := CheckArtifact(artifact); err != nil {
		return err
	}
	if !strings.HasSuffix(artifact, signatureSuffix) && !strings.HasSuffix(artifact, prefetchSuffix) {
		return fmt.Errorf("%w: an attachment's ends in %s or %s", ErrBadName, signatureSuffix, prefetchSuffix)
	}
	if len(data) > MaxAttachment {
		return fmt.Errorf("%d bytes, at most %d can be attached", len(data), MaxAttachment)
	}
	return nil
}

// Attach implements Store.
func (d *Dir) Attach(ctx context.Context, id uuid.UUID, artifact string, data []byte) error {
	const op = "attaching"
	if err := CheckAttachment(artifact, data); err != nil {
		return fail(op, id, artifact, err)
	}
	pin, err := d.Pin(ctx, id)
	if err != nil {
		return fail(op, id, artifact, errors.Unwrap(err))
	}
	defer pin.Close()
	return fail(op, id, artifact, d.attach(id, artifact, data))
}

func (d *Dir) attach(id uuid.UUID, artifact string, data []byte) error {
	path, folder, err := d.claim(id) // a folder that a sweep clears away if we die
	if err != nil {
		return err
	}
	defer folder.Close()
	defer os.RemoveAll(path)
	fresh := filepath.Join(path, artifact)
	if err := writeSynced(fresh, data); err != nil {
		return err
	}
	d.at("attachment written")
	if err := os.Rename(fresh, filepath.Join(d.folder(id), artifact)); err != nil {
		return err
	}
	return syncDir(d.folder(id))
}

// InUse implements Store.
func (d *Dir) InUse(ctx context.Context, id uuid.UUID) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := d.lock(wait, id, flock.Exclusive)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return true, nil
	}
	if err != nil {
		return false, fail("looking at", id, "", err)
	}
	return false, f.Close()
}

// Published implements Store.
func (d *Dir) Published(_ context.Context, id uuid.UUID) (time.Time, error) {
	st, err := os.Lstat(filepath.Join(d.folder(id), Manifest))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoSnapshot
	}
	if err != nil {
		return time.Time{}, fail("looking at", id, "", err)
	}
	return st.ModTime(), nil
}
