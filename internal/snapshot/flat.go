package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/flock"
)

// flatCache keeps flat memory files, one for each memory header's digest:
//
//	<key>.mem    the memory as it is: sparse, complete and verified
//	<key>.seal   the stamp that the file had when it was made; its own modification
//	             time is that of the last use
//	<key>.lock   held (flock) by the one that makes the file
//	<key>.mem.new.<n>, <key>.seal.new   being made
//
// A user of a file holds a shared flock on it, which keeps it from being evicted.
// There is no point in hashing a file of gigabytes each time that a machine wakes.
// Instead the kernel tells whether anybody wrote to it since it was made: the
// change time can't be set back.
type flatCache struct {
	dir   string
	limit int64 // bytes on disk that unused files may take up
	// at, for tests, is called where a crash would leave something half done.
	at func(point string)
}

const (
	flatSuffix = ".mem"
	sealSuffix = ".seal"
	lockSuffix = ".lock"
	newInfix   = ".new"
)

func cacheKey(m *Metadata) string {
	return strings.TrimPrefix(m.Artifacts[MemoryHeader].Digest.String(), "blake3:")
}

func (c *flatCache) path(key, suffix string) string { return filepath.Join(c.dir, key+suffix) }

// FlatMemory returns the snapshot's memory as a file of its plain bytes, to be
// mapped privately by any number of machines; its Name is its path. It is made
// once on this host, by whoever comes first, and checked for changes each time
// after: a file that anybody wrote to is made again.
//
// The file is open for reading and writing, as QEMU asks for, but must not be
// written to. It carries a shared flock that keeps the cache from evicting it:
// keep it open, or a descendant of its descriptor, while a machine maps it.
//
// progress, which may be nil, hears how much of how many bytes of data is done; it
// is not called if the file is there. Calls of it do not overlap. Errors are those
// of reading the memory, or wrap store.ErrFull.
func (r *Repo) FlatMemory(ctx context.Context, s *Snapshot, progress func(done, total int64)) (*os.File, error) {
	if s.memory == nil {
		return nil, fmt.Errorf("snapshot %s is a disk alone: it has no memory", s.meta.ID)
	}
	key := cacheKey(s.meta)
	f, err := r.cache.open(ctx, key)
	if f == nil && err == nil {
		f, err = r.cache.make(ctx, key, s.memory, progress)
	}
	if err != nil {
		return nil, fmt.Errorf("laying out the memory of snapshot %s: %w", s.meta.ID, err)
	}
	return f, nil
}

// open returns the file if it is there and as it was made, else nil.
func (c *flatCache) open(ctx context.Context, key string) (*os.File, error) {
	path := c.path(key, flatSuffix)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	good, err := c.check(ctx, f, key)
	if err != nil || !good {
		f.Close()
		return nil, err
	}
	return f, nil
}

// check locks the file for use and tells whether it is good.
func (c *flatCache) check(ctx context.Context, f *os.File, key string) (bool, error) {
	if err := flock.Lock(ctx, f, flock.Shared); err != nil {
		return false, err
	}
	now, err := stampOf(f)
	if err != nil {
		return false, err
	}
	// Had it been evicted or made again while we waited, there would be no seal or
	// that of another file.
	seal := c.path(key, sealSuffix)
	if made, ok := readStamp(seal); !ok || made != now {
		return false, nil
	}
	// Only eviction looks at it, so it may fail.
	t := time.Now()
	_ = os.Chtimes(seal, t, t)
	return true, nil
}

// make makes the file, unless another process does so first.
func (c *flatCache) make(ctx context.Context, key string, memory *block.Reader, progress func(done, total int64)) (*os.File, error) {
	// The files may be opened by anyone who can name them, see reserve: that nobody
	// else gets into the folder is what guards them.
	if err := errors.Join(os.MkdirAll(c.dir, 0o700), os.Chmod(c.dir, 0o700)); err != nil {
		return nil, err
	}
	lock, err := c.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// Removed while it is held: those who wait see that and start again.
	defer os.Remove(lock.Name())
	if f, err := c.open(ctx, key); f != nil || err != nil {
		return f, err
	}
	f, err := c.build(ctx, key, memory, progress)
	if full(err) {
		// Others' unused memory is worth less than a machine that wakes.
		if freed, _ := c.evict(ctx, 0); freed > 0 {
			f, err = c.build(ctx, key, memory, progress)
		}
	}
	if full(err) {
		return nil, fmt.Errorf("%w (in the cache, %s: free some or use another directory): %w", store.ErrFull, c.dir, err)
	} else if err != nil {
		return nil, err
	}
	if _, err := c.evict(ctx, c.limit); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// lock makes the caller the only one to make or remove the file of key.
func (c *flatCache) lock(ctx context.Context, key string) (*os.File, error) {
	path := c.path(key, lockSuffix)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		current := false
		if err = flock.Lock(ctx, f, flock.Exclusive); err == nil {
			current, err = flock.Current(f, path)
		}
		if err == nil && current {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// build makes the file under the lock and puts it in its place, in use.
func (c *flatCache) build(ctx context.Context, key string, memory *block.Reader, progress func(done, total int64)) (*os.File, error) {
	f, err := c.reserve(ctx, key)
	if err != nil {
		return nil, err
	}
	path := f.Name()
	f, err = c.fill(ctx, f, key, memory, progress)
	if err != nil {
		os.Remove(path) // it may have moved already: then it has no seal and is no good
		return nil, err
	}
	return f, nil
}

// reserve makes an empty file and locks it. A sweep may take it for abandoned
// between the two; then we start again.
func (c *flatCache) reserve(ctx context.Context, key string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(c.dir, key+flatSuffix+newInfix+".*")
		if err != nil {
			return nil, err
		}
		current := false
		// The VMM may run as a user of its own, who can't reach this folder but opens
		// the file again by the descriptor that it is handed.
		if err = errors.Join(f.Chmod(0o666), flock.Lock(ctx, f, flock.Shared)); err == nil {
			current, err = flock.Current(f, f.Name())
		}
		if err == nil && current {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, errors.Join(err, os.Remove(f.Name()))
		}
	}
}

// fill writes the memory to f, puts it in its place and seals it.
func (c *flatCache) fill(ctx context.Context, f *os.File, key string, memory *block.Reader, progress func(done, total int64)) (*os.File, error) {
	defer f.Close()
	var done int64
	total := memory.Header().Usage().Data()
	c.at("begun")
	err := memory.CopyTo(ctx, f, func(n int64) {
		done += n
		if progress != nil {
			progress(done, total)
		}
	})
	if err != nil {
		return nil, err
	}
	c.at("copied")
	path := c.path(key, flatSuffix)
	// The old seal first: it must not be there for the new file, not even by chance.
	if err := os.Remove(c.path(key, sealSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return nil, err
	}
	c.at("placed")
	if err := c.seal(f, key); err != nil {
		return nil, err
	}
	c.at("sealed")
	// Opened anew, so that its Name is where it now is.
	placed, err := c.open(ctx, key)
	if placed == nil && err == nil {
		err = fmt.Errorf("%s was changed by another program while it was made", path)
	}
	return placed, err
}
