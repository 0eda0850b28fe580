package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/image/rootfs"
)

// formatVersion is part of the names of cached files: raise it whenever the
// same image would come out as different bytes.
const formatVersion = "v2"

// Ext4 returns the path of img's root file system: a clean ext4 file with no
// room to spare. Treat it as read-only and make a disk of it with [Grow]. The
// file is in the cache, made if it isn't there yet; whoever asks for it
// meanwhile waits. Errors are of type [*Error]; a failed or interrupted build
// leaves nothing behind.
func (b *Builder) Ext4(ctx context.Context, img *Image, p Progress) (path string, err error) {
	path, err = b.ext4(ctx, img, p)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			err = &hintError{err, "free some space under " + b.cache.dir}
		}
		return "", fail(img.Ref, err)
	}
	return path, nil
}

func (b *Builder) ext4(ctx context.Context, img *Image, p Progress) (string, error) {
	key, ok := strings.CutPrefix(img.Digest, "sha256:")
	if !ok || len(key) != 2*sha256.Size || strings.Trim(key, "0123456789abcdef") != "" {
		return "", fmt.Errorf("bad digest %q", img.Digest)
	}
	name := formatVersion + "-" + key
	path := filepath.Join(b.cache.dir, "ext4", name+".ext4")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := b.cache.lock(ctx, name, func() { p.report(PhaseWait, 0, -1) })
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if img.layers == nil {
		if img, err = b.again(ctx, img); err != nil {
			return "", err
		}
	}
	dir, remove, err := b.cache.temp()
	if err != nil {
		return "", fmt.Errorf("making room for the build: %w", err)
	}
	defer remove()
	return path, b.build(ctx, img, dir, path, p)
}

// again resolves an image that was kept in writing, and insists that it still
// is the same one.
func (b *Builder) again(ctx context.Context, img *Image) (*Image, error) {
	now, err := b.Resolve(ctx, img.Ref, img.Platform)
	if err != nil {
		return nil, err
	}
	if now.Digest != img.Digest {
		return nil, &DigestError{"image", img.Digest, now.Digest}
	}
	return now, nil
}

func (b *Builder) build(ctx context.Context, img *Image, dir, path string, p Progress) error {
	spoolFile, err := os.Create(filepath.Join(dir, "spool"))
	if err != nil {
		return err
	}
	defer spoolFile.Close()
	spool := rootfs.NewSpool(spoolFile)
	tree, err := b.flatten(ctx, img, dir, spool, p)
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "rootfs.ext4"))
	if err != nil {
		return err
	}
	defer out.Close()
	if err := writeExt4(ctx, out, tree, spoolFile, img.Digest, p); err != nil {
		return err
	}
	if err := b.cache.publish(out, path); err != nil {
		return fmt.Errorf("publishing the file system: %w", err)
	}
	return nil
}

// flatten stacks all layers of img.
func (b *Builder) flatten(ctx context.Context, img *Image, dir string, spool *rootfs.Spool, p Progress) (*rootfs.Tree, error) {
	var done, total int64
	for _, l := range img.layers {
		if l.size < 0 {
			total = -1
			break
		}
		total += l.size
	}
	p.report(PhasePull, 0, total)
	count := func(n int64) {
		done += n
		p.report(PhasePull, done, total)
	}
	layers := img.layers
	if slices.ContainsFunc(layers, func(l layer) bool { return l.remote }) {
		var stop func()
		layers, stop = prefetch(ctx, dir, layers, count)
		defer stop()
		count = nil
	}
	tree := rootfs.NewTree(spool, b.o.Limits)
	for _, l := range layers {
		start := time.Now()
		if err := l.apply(ctx, tree, b.o.Limits, count); err != nil {
			return nil, err
		}
		if l.built {
			tree.Settle(start.Truncate(time.Second))
		}
	}
	if err := spool.Seal(); err != nil {
		return nil, err
	}
	for _, l := range img.layers {
		if l.finish == nil {
			continue
		}
		if err := l.finish(tree); err != nil {
			return nil, err
		}
	}
	return tree, nil
}
