package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/store/flock"
)

// flatFile is a flat memory file as eviction sees it.
type flatFile struct {
	key  string
	used time.Time
	size int64 // on disk, bytes
}

// evict removes the flat memory files that were not used for longest until those
// that no machine uses take up at most limit bytes on disk. It returns how many
// bytes it freed. Files in use are left alone and do not count.
func (c *flatCache) evict(ctx context.Context, limit int64) (int64, error) {
	files, err := c.unused()
	if err != nil {
		return 0, err
	}
	slices.SortFunc(files, func(a, b flatFile) int { return a.used.Compare(b.used) })
	var total, freed int64
	for _, f := range files {
		total += f.size
	}
	for _, f := range files {
		if total-freed <= limit {
			break
		}
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		gone, err := c.remove(f.key)
		if err != nil {
			return freed, err
		}
		if gone {
			freed += f.size
		}
	}
	return freed, nil
}

// unused lists the files that nobody uses right now.
func (c *flatCache) unused() ([]flatFile, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var files []flatFile
	for _, e := range entries {
		key, is := strings.CutSuffix(e.Name(), flatSuffix)
		if !is {
			continue
		}
		f, err := lockUnused(c.path(key, flatSuffix))
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		f.Close()
		if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: c.path(key, flatSuffix), Err: err}
		}
		used := time.Time{} // without a seal it is of no use to anybody
		if seal, err := os.Lstat(c.path(key, sealSuffix)); err == nil {
			used = seal.ModTime()
		}
		files = append(files, flatFile{key: key, used: used, size: st.Blocks * 512})
	}
	return files, nil
}

// lockUnused opens a file and takes it for itself, or returns nil if somebody
// uses it or it is gone.
func lockUnused(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	err = flock.Try(f, flock.Exclusive)
	current := false
	if err == nil {
		current, err = flock.Current(f, path)
	}
	if err == nil && current {
		return f, nil
	}
	f.Close()
	if errors.Is(err, flock.ErrHeld) {
		err = nil
	}
	return nil, err
}

// drop removes the file of a snapshot that is no more.
func (c *flatCache) drop(key string) error {
	_, err := c.remove(key)
	return err
}

// remove removes the file of key and its seal, unless somebody uses it.
func (c *flatCache) remove(key string) (bool, error) {
	f, err := lockUnused(c.path(key, flatSuffix))
	if f == nil {
		return false, err
	}
	defer f.Close()
	return true, c.unlink(key, sealSuffix, flatSuffix)
}

// unlink removes files of key, as far as they are there.
func (c *flatCache) unlink(key string, suffixes ...string) error {
	var errs []error
	for _, suffix := range suffixes {
		if err := os.Remove(c.path(key, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweep removes what those left who died while they made or removed a file.
func (c *flatCache) sweep() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		var err error
		name := e.Name()
		if key, is := strings.CutSuffix(name, lockSuffix); is {
			err = c.sweepLocked(key)
		} else if strings.Contains(name, flatSuffix+newInfix+".") {
			err = c.sweepFile(name)
		} else if key, is := strings.CutSuffix(name, sealSuffix); is {
			err = c.sweepSeal(key)
		}
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepLocked removes what is half done for key when nobody is at work on it.
func (c *flatCache) sweepLocked(key string) error {
	lock, err := lockUnused(c.path(key, lockSuffix))
	if lock == nil {
		return err
	}
	defer lock.Close()
	return c.unlink(key, sealSuffix+newInfix, lockSuffix)
}

func (c *flatCache) sweepFile(name string) error {
	f, err := lockUnused(c.path(name, ""))
	if f == nil {
		return err
	}
	defer f.Close()
	return c.unlink(name, "")
}

// sweepSeal removes a seal without a file. To take one from under a file that is
// just being made would only have it made again.
func (c *flatCache) sweepSeal(key string) error {
	if _, err := os.Lstat(c.path(key, flatSuffix)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.unlink(key, sealSuffix)
}
