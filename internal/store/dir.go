package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

const (
	draftsDir  = ".drafts"
	partialDir = ".partial"
	namesDir   = ".names"
)

// patience is how long Remove waits for a lock that is held only in passing (by a
// commit that is just ending, by a sweep) before it calls the snapshot in use.
const patience = 200 * time.Millisecond

// Dir is a store in a directory:
//
//	<root>/<id>/…                    a published snapshot; never changes
//	<root>/.drafts/<id>.<n>/         a snapshot being written, or being removed
//	<root>/.partial/<id>.<content>/  one being copied, or as much as was copied of it
//	<root>/.names/<name>             a file that holds the id ("/" is kept as "+")
//
// Publishing is a rename of the folder, so is removing. Whoever works on a folder
// in .drafts or .partial holds an exclusive flock on it. One that nobody holds was
// left by a process that died: in .drafts it is removed by the next OpenDir, in
// .partial it is there to go on with, until Sweep finds it old. A pin is a shared
// flock on the published folder. Everything is readable by its owner only: a
// memory image holds secrets.
type Dir struct {
	root string
	// at, for tests, is called where a crash would leave something half done.
	at func(point string)
}

var _ Store = (*Dir)(nil)

// OpenDir opens the store in the directory path, which need not exist before the
// first draft, and removes what dead writers left there.
func OpenDir(path string) (*Dir, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", path, err)
	}
	if st, err := os.Stat(root); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("opening the store %s: it is not a directory", path)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	d := &Dir{root: root, at: func(string) {}}
	if err := d.sweep(); err != nil {
		return nil, fmt.Errorf("opening the store %s: removing what an interrupted run left: %w", path, err)
	}
	return d, nil
}

// Root returns the absolute path of the store's directory.
func (d *Dir) Root() string { return d.root }

func (d *Dir) folder(id uuid.UUID) string { return filepath.Join(d.root, id.String()) }

// Open implements Store.
func (d *Dir) Open(ctx context.Context, id uuid.UUID, artifact string) (Object, error) {
	const op = "opening"
	if err := ctx.Err(); err != nil {
		return nil, fail(op, id, artifact, err)
	}
	if err := CheckArtifact(artifact); err != nil {
		return nil, fail(op, id, artifact, err)
	}
	path := filepath.Join(d.folder(id), artifact)
	// Not through links, and without waiting for a peer should it be a pipe: a
	// store may have been unpacked from an archive of unknown origin.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(op, id, artifact, d.missing(id))
	} else if err != nil {
		return nil, fail(op, id, artifact, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fail(op, id, artifact, err)
	}
	return &object{File: f, size: st.Size()}, nil
}

// missing tells which part of <root>/<id>/<artifact> is not there.
func (d *Dir) missing(id uuid.UUID) error {
	if _, err := os.Lstat(d.folder(id)); err != nil {
		return ErrNoSnapshot
	}
	return ErrNoArtifact
}

type object struct {
	*os.File
	size int64
}

func (o *object) Size() int64 { return o.size }

// published tells whether id's folder and manifest are there.
func (d *Dir) published(id uuid.UUID) bool {
	st, err := os.Lstat(filepath.Join(d.folder(id), Manifest))
	return err == nil && st.Mode().IsRegular()
}

// List implements Store. Folders without a manifest are not the store's and are
// left out.
func (d *Dir) List(ctx context.Context) ([]uuid.UUID, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the store: %w", err)
	}
	var ids []uuid.UUID
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("listing the store: %w", err)
		}
		id, err := uuid.Parse(e.Name())
		if err == nil && id.String() == e.Name() && e.IsDir() && d.published(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Pin implements Store.
func (d *Dir) Pin(ctx context.Context, id uuid.UUID) (io.Closer, error) {
	f, err := d.lock(ctx, id, flock.Shared)
	if err != nil {
		return nil, fail("pinning", id, "", err)
	}
	return f, nil
}

// lock opens and locks the folder of a published snapshot.
func (d *Dir) lock(ctx context.Context, id uuid.UUID, m flock.Mode) (*os.File, error) {
	f, err := os.OpenFile(d.folder(id), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoSnapshot
	} else if err != nil {
		return nil, err
	}
	err = flock.Lock(ctx, f, m)
	if err == nil {
		var current bool
		if current, err = flock.Current(f, d.folder(id)); err == nil && !current {
			err = ErrNoSnapshot // removed while we waited
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Remove implements Store.
func (d *Dir) Remove(ctx context.Context, id uuid.UUID, unless func(context.Context) error) error {
	const op = "removing"
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	folder, err := d.lock(wait, id, flock.Exclusive)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = ErrInUse
	}
	if err != nil {
		return fail(op, id, "", err)
	}
	defer folder.Close()
	if unless != nil {
		if err := unless(ctx); err != nil {
			return err
		}
	}
	if err := d.makeDrafts(); err != nil {
		return fail(op, id, "", err)
	}
	trash := filepath.Join(d.drafts(), id.String()+"."+uuid.NewString())
	d.at("remove: before the rename")
	if err := os.Rename(d.folder(id), trash); err != nil {
		return fail(op, id, "", err)
	}
	ctx = context.WithoutCancel(ctx) // it is removed: what is left to do is to clean up
	d.at("remove: after the rename")
	err = errors.Join(syncDir(d.root), d.forget(ctx, id))
	d.at("remove: names gone")
	return fail(op, id, "", errors.Join(err, os.RemoveAll(trash)))
}

func (d *Dir) drafts() string { return filepath.Join(d.root, draftsDir) }

func (d *Dir) makeDrafts() error { return os.MkdirAll(d.drafts(), 0o700) }

// sweep removes everything in .drafts that nobody has locked, and of .partial what
// is of no more use. A store that we may not write to is left as it is.
func (d *Dir) sweep() error {
	entries, err := os.ReadDir(d.drafts())
	if err != nil && !unwritable(err) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if _, err := sweepOne(filepath.Join(d.drafts(), e.Name())); err != nil && !unwritable(err) {
			errs = append(errs, err)
		}
	}
	if _, err := d.sweepPartials(time.Time{}); err != nil {
		errs = append(errs, err)
	}
	if err := d.sweepNames(); err != nil && !unwritable(err) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepOne removes a folder that nobody has locked, and tells whether it did.
func sweepOne(path string) (gone bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, unix.ELOOP):
		return true, os.Remove(path) // a link: no draft of ours
	case err != nil:
		return false, err
	}
	defer f.Close()
	if err := flock.Try(f, flock.Exclusive); errors.Is(err, flock.ErrHeld) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	// Its writer may have published it meanwhile, and another have begun again.
	if current, err := flock.Current(f, path); !current || err != nil {
		return false, err
	}
	return true, os.RemoveAll(path)
}

func unwritable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
