package rootfs

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Open reads the regular file at path, through links.
func (t *Tree) Open(path string) (io.Reader, error) {
	parts, err := split(path, path)
	if err != nil {
		return nil, err
	}
	for range maxHops {
		n, err := t.find(path, parts)
		switch {
		case err != nil:
			return nil, err
		case n == nil:
			return nil, fmt.Errorf("opening %s: %w", path, os.ErrNotExist)
		case n.IsRegular():
			return io.NewSectionReader(t.spool.f, n.Data.Offset, n.Data.Size), nil
		case !n.IsSymlink():
			return nil, fmt.Errorf("opening %s: not a regular file", path)
		}
		target := strings.Split(n.Target, "/")
		if strings.HasPrefix(n.Target, "/") {
			parts = nil
		}
		parts = append(slices.Clone(parts[:max(0, len(parts)-1)]), target...)
	}
	return nil, entryError(path, ErrLoop, "more than %d", maxHops)
}

// Disown gives the file at path, if there is one, to root. Links are not followed.
func (t *Tree) Disown(path string) error {
	parts, err := split(path, path)
	if err != nil {
		return err
	}
	n, err := t.find(path, parts)
	if n != nil {
		n.UID, n.GID = 0, 0
	}
	return err
}

// Settle gives every file that was changed at start or later the time of the
// newest one before. A tool that builds a tree stamps what it generates with
// the time of day; what it unpacks keeps its own time, and is always the same.
func (t *Tree) Settle(start time.Time) {
	newest := time.Unix(0, 0)
	var each func(*Node, func(*Node))
	each = func(n *Node, do func(*Node)) {
		do(n)
		for _, child := range n.children {
			each(child, do)
		}
	}
	each(t.root, func(n *Node) {
		if n.ModTime.Before(start) && n.ModTime.After(newest) {
			newest = n.ModTime
		}
	})
	each(t.root, func(n *Node) {
		if !n.ModTime.Before(start) {
			n.ModTime = newest
		}
	})
}
