package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// draft is a Draft in a directory.
type draft struct {
	dir    *Dir
	id     uuid.UUID
	path   string
	folder *os.File // holds the lock that keeps sweeps away
	kept   bool     // in .partial, with what an earlier draft left there

	mu     sync.Mutex
	files  map[string]*draftFile
	over   bool
	broken error // first failed write; what it left must not be published
}

// Begin implements Store.
func (d *Dir) Begin(ctx context.Context, id uuid.UUID) (Draft, error) {
	draft, err := d.begin(ctx, id)
	if err != nil {
		return nil, err // not a *draft that is nil
	}
	return draft, nil
}

func (d *Dir) begin(ctx context.Context, id uuid.UUID) (*draft, error) {
	const op = "starting"
	if err := d.prepare(ctx, id); err != nil {
		return nil, fail(op, id, "", err)
	}
	path, folder, err := d.claim(id)
	if err != nil {
		return nil, fail(op, id, "", err)
	}
	d.at("begun")
	return &draft{dir: d, id: id, path: path, folder: folder, files: map[string]*draftFile{}}, nil
}

// prepare sees to it that a draft of id can be begun.
func (d *Dir) prepare(ctx context.Context, id uuid.UUID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if id == uuid.Nil {
		return errors.New("the nil UUID stands for no snapshot")
	}
	if err := d.vacant(id); err != nil {
		return err
	}
	return d.makeRoot()
}

// vacant tells whether id may still be published.
func (d *Dir) vacant(id uuid.UUID) error {
	if _, err := os.Lstat(d.folder(id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if !d.published(id) {
		return fmt.Errorf("%w, but it has no %s: remove it first", ErrExist, Manifest)
	}
	return ErrExist
}

// makeRoot creates the store's directory, durably, when it is not there.
func (d *Dir) makeRoot() error {
	var parents []string // whose entries are new
	for path := d.root; ; path = filepath.Dir(path) {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		parents = append(parents, filepath.Dir(path))
	}
	if len(parents) == 0 {
		return nil
	}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return err
	}
	for _, path := range parents {
		if err := syncDir(path); err != nil {
			return err
		}
	}
	return nil
}

// claim makes a draft's folder and locks it. A sweep may take it for abandoned
// between the two; then we start again.
func (d *Dir) claim(id uuid.UUID) (string, *os.File, error) {
	if err := d.makeDrafts(); err != nil {
		return "", nil, err
	}
	for {
		path, err := os.MkdirTemp(d.drafts(), id.String()+".*")
		if err != nil {
			return "", nil, err
		}
		folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", nil, errors.Join(err, os.Remove(path))
		}
		current := false
		if err = flock.Try(folder, flock.Exclusive); err == nil {
			if current, err = flock.Current(folder, path); current {
				return path, folder, nil
			}
		}
		folder.Close()
		if err != nil && !errors.Is(err, flock.ErrHeld) {
			return "", nil, errors.Join(err, os.Remove(path))
		}
	}
}

// Create implements Draft.
func (d *draft) Create(artifact string) (File, error) {
	f, err := d.create(artifact, false)
	if err != nil {
		return nil, fail("creating", d.id, artifact, err)
	}
	return f, nil
}

// create starts an object, with what is left of it if goOn is set.
func (d *draft) create(artifact string, goOn bool) (*draftFile, error) {
	if err := CheckArtifact(artifact); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mayCreate(artifact); err != nil {
		return nil, err
	}
	file := &draftFile{draft: d, name: artifact}
	path, err := filepath.Join(d.path, artifact), fs.ErrNotExist
	if goOn {
		file.f, file.size, err = reopen(path)
	}
	if err != nil {
		if d.kept {
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
		}
		file.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, err
	}
	d.files[artifact] = file
	d.dir.at("created " + artifact)
	return file, nil
}

func (d *draft) mayCreate(artifact string) error {
	if d.over {
		return ErrOver
	}
	if d.broken != nil {
		return d.broken
	}
	if d.files[artifact] != nil {
		return fs.ErrExist
	}
	if d.files[Manifest] != nil {
		return fmt.Errorf("%s was begun, and is the last", Manifest)
	}
	if artifact == Manifest {
		return d.allClosed()
	}
	return nil
}

func (d *draft) allClosed() error {
	for name, f := range d.files {
		if !f.closed {
			return fmt.Errorf("%s is still being written", name)
		}
	}
	return nil
}

// Commit implements Draft.
func (d *draft) Commit(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return fail("publishing", d.id, "", ErrOver)
	}
	if err := d.publish(ctx); err != nil {
		end := d.end
		if d.kept && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			end = d.keep // nothing is wrong with it
		}
		return errors.Join(fail("publishing", d.id, "", err), end())
	}
	d.over = true
	d.release()
	// Other processes see the snapshot by now; what is left to fail is that it
	// might not outlive a power cut, which the caller must hear of.
	if err := syncDir(d.dir.root); err != nil {
		return fail("publishing", d.id, "", fmt.Errorf("it is there, but may not survive a power cut: %w", err))
	}
	d.dir.at("committed")
	return nil
}

func (d *draft) publish(ctx context.Context) error {
	if d.broken != nil {
		return d.broken
	}
	if err := d.allClosed(); err != nil {
		return err
	}
	if d.files[Manifest] == nil {
		return fmt.Errorf("%s was not written", Manifest)
	}
	if d.kept {
		if err := d.removeStrays(); err != nil {
			return err
		}
	}
	// All at once: the file system joins them into few journal commits.
	var g errgroup.Group
	for _, f := range d.files {
		g.Go(f.f.Sync)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.dir.at("synced")
	if err := d.folder.Sync(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.dir.at("before the rename")
	// A rename onto anything but an empty folder fails, which settles races.
	err := unix.Rename(d.path, d.dir.folder(d.id))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
		return ErrExist
	} else if err != nil {
		return os.NewSyscallError("rename", err)
	}
	d.dir.at("after the rename")
	return nil
}

// Abort implements Draft.
func (d *draft) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return nil
	}
	return fail("giving up", d.id, "", d.end())
}

// end removes the draft. The lock goes last, so that nobody sweeps alongside.
func (d *draft) end() error {
	d.over = true
	err := os.RemoveAll(d.path)
	d.release()
	return err
}

// release closes all descriptors; what was written is safe or unwanted by now.
func (d *draft) release() {
	for _, f := range d.files {
		f.closed = true
		f.f.Close()
	}
	d.folder.Close()
}

// draftFile is a File of a draft. It stays open until the draft is over because
// Commit has to sync it.
type draftFile struct {
	draft  *draft
	name   string
	f      *os.File
	size   int64
	closed bool
}

// Write implements io.Writer.
func (f *draftFile) Write(p []byte) (int, error) {
	f.draft.mu.Lock()
	closed, broken := f.closed, f.draft.broken
	f.draft.mu.Unlock()
	if broken != nil {
		return 0, broken
	}
	if closed {
		return 0, fail("writing", f.draft.id, f.name, fs.ErrClosed)
	}
	n, err := f.f.Write(p)
	err = fail("writing", f.draft.id, f.name, err)
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	f.size += int64(n)
	if err != nil && f.draft.broken == nil {
		f.draft.broken = err
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *draftFile) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Size implements File.
func (f *draftFile) Size() int64 {
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	return f.size
}

// Close ends the writing of the file.
func (f *draftFile) Close() error {
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	if f.closed {
		return fail("closing", f.draft.id, f.name, fs.ErrClosed)
	}
	f.closed = true
	f.draft.dir.at("closed " + f.name)
	return nil
}
