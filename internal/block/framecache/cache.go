// Package framecache keeps frames of data from far away on this host's disk, by
// their digests: one file each, in 256 folders by the digest's first byte.
//
// It is shared by all processes of a user and needs no locks: a file appears whole,
// by a rename, and any of them may go at any time. Nothing that goes wrong is an
// error: a cache that is deleted, full or damaged has less to give, no more. Those
// who read from it check what they get.
package framecache

import (
	"cmp"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sporevm/spore/internal/block"
)

const (
	shards = 256
	// trimEvery is how many frames a process adds to a folder between looks at
	// whether it has become too large.
	trimEvery = 16
	// touchAfter is how old a frame's last use must be to be written down again.
	touchAfter = time.Minute
)

// Cache is a folder of frames. The least recently used go first when a folder's
// part of the limit is used up.
type Cache struct {
	dir   string
	limit int64 // bytes, of one folder
	added [shards]atomic.Int32
}

// Open returns the cache in a directory, which is made when it is first needed. It
// takes up at most limit bytes, or little more for a moment.
func Open(dir string, limit int64) *Cache { return &Cache{dir: dir, limit: limit / shards} }

func (c *Cache) path(d block.Digest) string {
	name := hex.EncodeToString(d[:])
	return filepath.Join(c.dir, name[:2], name[2:])
}

// Get fills p with the frame of a digest and tells whether it was there, as long as
// p. It has to be verified.
func (c *Cache) Get(d block.Digest, p []byte) bool {
	f, err := os.Open(c.path(d))
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() != int64(len(p)) {
		return false
	}
	if n, err := f.ReadAt(p, 0); n < len(p) || err != nil {
		return false
	}
	if now := time.Now(); now.Sub(st.ModTime()) > touchAfter {
		_ = os.Chtimes(f.Name(), now, now)
	}
	return true
}

// Put keeps a frame, in the place of what was kept under its digest.
func (c *Cache) Put(d block.Digest, p []byte) {
	path := c.path(d)
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if os.IsNotExist(err) && os.MkdirAll(dir, 0o700) == nil {
		f, err = os.CreateTemp(dir, ".new-*")
	}
	if err != nil {
		return
	}
	_, err = f.Write(p)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	if c.added[d[0]].Add(1)%trimEvery == 1 || err != nil {
		c.trim(dir)
	}
}

// Drop forgets a frame.
func (c *Cache) Drop(d block.Digest) { os.Remove(c.path(d)) }

// trim removes the frames of a folder that were not used for longest until it keeps
// to its limit, and what writers left that died.
func (c *Cache) trim(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var files []fs.FileInfo
	var total int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if e.Name()[0] == '.' && time.Since(info.ModTime()) < time.Hour {
			continue // being written
		}
		files = append(files, info)
		total += info.Size()
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		// Leftovers first, they are hidden.
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.ModTime().Compare(b.ModTime()))
	})
	for _, f := range files {
		if total <= c.limit && rank(f) > 0 {
			return
		}
		if os.Remove(filepath.Join(dir, f.Name())) == nil {
			total -= f.Size()
		}
	}
}

func rank(f fs.FileInfo) int {
	if f.Name()[0] == '.' {
		return 0
	}
	return 1
}
