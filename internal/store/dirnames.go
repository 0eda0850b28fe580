package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// newName is where a name's file is written before it takes its place. It can't
// clash with a name, which never starts with a dot.
const newName = ".new"

func (d *Dir) nameFile(name string) string {
	return filepath.Join(d.root, namesDir, strings.ReplaceAll(name, "/", "+"))
}

// lockNames keeps other writers of names out until the file is closed. Readers
// need no lock: each name's file is replaced in one step.
func (d *Dir) lockNames(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(d.root, namesDir), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(ctx, f, flock.Exclusive); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SetName implements Store.
func (d *Dir) SetName(ctx context.Context, name string, id uuid.UUID) error {
	if err := CheckName(name); err != nil {
		return err
	}
	pin, err := d.Pin(ctx, id)
	if err != nil {
		return fmt.Errorf("naming %q: %w", name, err)
	}
	defer pin.Close()
	if err := d.setName(ctx, name, id); err != nil {
		return fmt.Errorf("naming %q: %w", name, explain(err))
	}
	return nil
}

func (d *Dir) setName(ctx context.Context, name string, id uuid.UUID) error {
	err := os.Mkdir(filepath.Join(d.root, namesDir), 0o700)
	if err == nil {
		err = syncDir(d.root)
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	lock, err := d.lockNames(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	fresh := filepath.Join(d.root, namesDir, newName)
	err = writeSynced(fresh, []byte(id.String()+"\n"))
	d.at("name written")
	if err == nil {
		err = os.Rename(fresh, d.nameFile(name))
	}
	if err != nil {
		os.Remove(fresh)
		return err
	}
	d.at("name set")
	return lock.Sync()
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Name implements Store.
func (d *Dir) Name(_ context.Context, name string) (uuid.UUID, error) {
	if err := CheckName(name); err != nil {
		return uuid.Nil, err
	}
	id, err := readName(d.nameFile(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBadName) || err == nil && !d.published(id) {
		err = ErrNoName
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("reading the name %q: %w", name, err)
	}
	return id, nil
}

// Names implements Store. A name whose snapshot is gone, or whose file is
// damaged, is no name.
func (d *Dir) Names(ctx context.Context) (map[string]uuid.UUID, error) {
	all, err := d.readNames(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the names: %w", err)
	}
	for name, id := range all {
		if !d.published(id) {
			delete(all, name)
		}
	}
	return all, nil
}

// readNames also returns the names of removed snapshots.
func (d *Dir) readNames(ctx context.Context) (map[string]uuid.UUID, error) {
	entries, err := os.ReadDir(filepath.Join(d.root, namesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make(map[string]uuid.UUID, len(entries))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := strings.ReplaceAll(e.Name(), "+", "/")
		if CheckName(name) != nil || !e.Type().IsRegular() {
			continue
		}
		id, err := readName(d.nameFile(name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBadName) {
			continue
		} else if err != nil {
			return nil, err
		}
		names[name] = id
	}
	return names, nil
}

// readName reads the id in a name's file.
func readName(path string) (uuid.UUID, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return uuid.Nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return uuid.Nil, err
	}
	text, whole := strings.CutSuffix(string(data), "\n")
	id, err := uuid.Parse(text)
	if !whole || err != nil || id.String() != text {
		return uuid.Nil, ErrBadName
	}
	return id, nil
}

// RemoveName implements Store.
func (d *Dir) RemoveName(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	lock, err := d.lockNames(ctx)
	if err == nil {
		defer lock.Close()
		if err = os.Remove(d.nameFile(name)); err == nil {
			err = lock.Sync()
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoName
	}
	if err != nil {
		return fmt.Errorf("removing the name %q: %w", name, err)
	}
	return nil
}

// forget removes the names of a snapshot that was removed.
func (d *Dir) forget(ctx context.Context, id uuid.UUID) error {
	return d.dropNames(ctx, func(to uuid.UUID) bool { return to == id })
}

// sweepNames removes what an interrupted SetName or Remove left, unless somebody
// is at work on the names: then it is theirs.
func (d *Dir) sweepNames() error {
	stop, cancel := context.WithCancel(context.Background())
	cancel()
	err := d.dropNames(stop, func(to uuid.UUID) bool {
		_, err := os.Lstat(d.folder(to))
		return errors.Is(err, fs.ErrNotExist)
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// dropNames removes the names whose snapshot answers to gone, and a half-written
// name.
func (d *Dir) dropNames(ctx context.Context, gone func(uuid.UUID) bool) error {
	lock, err := d.lockNames(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// The lock is had: from here on nothing is waited for.
	names, err := d.readNames(context.WithoutCancel(ctx))
	errs := []error{err}
	for name, id := range names {
		if gone(id) {
			errs = append(errs, os.Remove(d.nameFile(name)))
		}
	}
	if err := os.Remove(filepath.Join(d.root, namesDir, newName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
