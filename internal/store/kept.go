package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// KeptDraft is a Draft that may go on where an earlier one of the same content
// broke off, its process killed perhaps. Nobody has checked what that one left.
type KeptDraft interface {
	Draft

	// Continue starts an object with what is left of it; else it is like Create.
	Continue(artifact string) (KeptFile, error)

	// Keep gives the draft up like Abort, but leaves to the next draft what was
	// written. After a write that failed it leaves nothing: the space may be needed.
	Keep() error
}

// KeptFile is a File that had bytes in it when it was started.
type KeptFile interface {
	File
	// Truncate leaves the first size bytes, and has Write go on after them.
	Truncate(size int64) error
}

// BeginKept is Begin for what can be made again to the byte and may be interrupted:
// a copy. content, a digest in hexadecimal, says what is copied. Of two drafts of one
// content at once only the first goes on with what is left, and leaves something
// itself: the other is as Begin makes it.
func (d *Dir) BeginKept(ctx context.Context, id uuid.UUID, content string) (KeptDraft, error) {
	const op = "starting"
	if err := CheckArtifact(content); err != nil {
		return nil, fail(op, id, "", err)
	}
	if err := d.prepare(ctx, id); err != nil {
		return nil, fail(op, id, "", err)
	}
	path := filepath.Join(d.partials(), id.String()+"."+content)
	folder, err := d.claimPartial(path)
	if err != nil { // held by another, or not ours to open
		plain, err := d.begin(ctx, id)
		if err != nil {
			return nil, err
		}
		return plain, nil
	}
	d.at("begun")
	return &draft{dir: d, id: id, path: path, folder: folder, files: map[string]*draftFile{}, kept: true}, nil
}

func (d *Dir) partials() string { return filepath.Join(d.root, partialDir) }

// claimPartial locks a folder of .partial, and makes it if there is none. The error
// wraps flock.ErrHeld if somebody is at work on it.
func (d *Dir) claimPartial(path string) (*os.File, error) {
	for {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // published or swept meanwhile
		} else if err != nil {
			return nil, err
		}
		current := false
		if err = flock.Try(folder, flock.Exclusive); err == nil {
			current, err = flock.Current(folder, path)
		}
		if current {
			return folder, nil
		}
		folder.Close()
		if err != nil {
			return nil, err
		}
	}
}

// Continue implements KeptDraft.
func (d *draft) Continue(artifact string) (KeptFile, error) {
	f, err := d.create(artifact, d.kept)
	if err != nil {
		return nil, fail("creating", d.id, artifact, err)
	}
	return f, nil
}

// reopen opens what an earlier draft wrote of an object. The error is fs.ErrNotExist
// if that is nothing of use.
func reopen(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fs.ErrNotExist
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		f.Close()
		return nil, 0, fs.ErrNotExist
	}
	return f, st.Size(), nil
}

// Truncate implements KeptFile.
func (f *draftFile) Truncate(size int64) error {
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	if f.closed {
		return fail("cutting", f.draft.id, f.name, fs.ErrClosed)
	}
	err := f.f.Truncate(size)
	if err == nil {
		_, err = f.f.Seek(size, io.SeekStart)
	}
	if err == nil {
		f.size = size
	}
	return fail("cutting", f.draft.id, f.name, err)
}

// Keep implements KeptDraft.
func (d *draft) Keep() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return nil
	}
	return d.keep()
}

// keep is Keep by whoever holds the mutex.
func (d *draft) keep() error {
	if d.files[Manifest] != nil { // the next writes its own
		_ = unix.Unlinkat(int(d.folder.Fd()), Manifest, 0)
	}
	if left, _, err := measure(d.path); !d.kept || d.broken != nil || err != nil || left == 0 {
		return fail("giving up", d.id, "", d.end())
	}
	d.over = true
	d.release()
	return nil
}

// removeStrays removes what an earlier draft left and this one did not touch.
func (d *draft) removeStrays() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if d.files[e.Name()] == nil {
			if err := os.RemoveAll(filepath.Join(d.path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepPartials removes from .partial what nobody is at work on: what belongs to
// snapshots that were published meanwhile, and what was touched last before a time.
func (d *Dir) sweepPartials(before time.Time) (freed int64, err error) {
	entries, err := os.ReadDir(d.partials())
	if errors.Is(err, fs.ErrNotExist) || unwritable(err) {
		return 0, nil
	}
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(d.partials(), e.Name())
		size, touched, err := measure(path)
		if err == nil && (touched.Before(before) || d.isPublished(e.Name())) {
			var gone bool
			if gone, err = sweepOne(path); gone {
				freed += size
			}
		}
		if err != nil && !unwritable(err) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return freed, errors.Join(errs...)
}

// isPublished tells whether the snapshot of a folder in .partial is there.
func (d *Dir) isPublished(name string) bool {
	if len(name) < len(uuid.Nil.String()) {
		return false
	}
	id, err := uuid.Parse(name[:len(uuid.Nil.String())])
	return err == nil && d.published(id)
}

// measure returns how much is in a folder, and when it was last written to.
func measure(path string) (size int64, touched time.Time, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if st.ModTime().After(touched) {
			touched = st.ModTime()
		}
		if st.Mode().IsRegular() {
			size += st.Size()
		}
		return nil
	})
	return size, touched, err
}

// Sweep removes what interrupted copies left, and nobody went on with, before a
// time, and returns how many bytes that were.
func (d *Dir) Sweep(_ context.Context, before time.Time) (freed int64, err error) {
	if freed, err = d.sweepPartials(before); err != nil {
		err = fmt.Errorf("removing what interrupted copies left: %w", err)
	}
	return freed, err
}
