package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/agentbin"
)

// fileDigest hashes a file's content.
func fileDigest(path string) (block.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return block.Digest{}, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.Copy(h, f); err != nil {
		return block.Digest{}, fmt.Errorf("hashing %s: %w", path, err)
	}
	return block.Digest(h.Sum(nil)), nil
}

// treeDigest hashes what a copy step would bring into the guest: names, modes, link targets and content.
func treeDigest(root string) (string, error) {
	h := blake3.New()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %v %d\n", name, info.Mode(), info.Size())
		switch {
		case info.Mode().IsRegular():
			digest, err := fileDigest(path)
			fmt.Fprintf(h, "%s\n", digest)
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			fmt.Fprintf(h, "%q\n", target)
			return err
		case info.IsDir():
			return nil
		}
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", path)
	})
	if err != nil {
		return "", fmt.Errorf("reading what is to be copied: %w", err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// copyIn copies a file or the content of a directory into the guest, as its root user. A destination that ends in a slash is a directory to put a file in.
func (s *Sandbox) copyIn(ctx context.Context, source, destination string) error {
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	if !path.IsAbs(destination) {
		slash := strings.HasSuffix(destination, "/")
		destination = path.Join("/", s.meta.Context.Workdir, destination)
		if slash {
			destination += "/"
		}
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.IsDir() && strings.HasSuffix(destination, "/") {
		destination += filepath.Base(source)
	}
	client := s.Agent()
	err = filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		if rel == "." && !d.IsDir() {
			return copyFile(ctx, client, name, destination) // the source may be a link to a file
		}
		target := path.Join(destination, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			if err := client.MakeDir(ctx, target, "root"); !errors.Is(err, fs.ErrExist) {
				return err
			}
			return nil // what is copied joins what is there
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(name)
			if err != nil {
				return err
			}
			return client.Symlink(ctx, link, target, "root")
		}
		return copyFile(ctx, client, name, target)
	})
	return s.explain(ctx, err)
}

// copyFile copies one file's content and permissions.
func copyFile(ctx context.Context, client *guest.Client, source, destination string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", source)
	}
	return client.WriteFile(ctx, destination, f, guest.WriteOptions{User: "root", Mode: info.Mode().Perm()})
}

// initramfsName names a built initramfs by what it is made of.
func initramfsName(k guest.Kernel, agent []byte) string {
	h := blake3.New()
	fmt.Fprintf(h, "initramfs 1\n%s\n%s\n%s\n", k.Path, k.Version, k.Arch)
	h.Write(agent)
	return fmt.Sprintf("%x.cpio", h.Sum(nil)[:16])
}

// initramfs returns the initramfs for a kernel, building it unless the cache has it.
func (h *Host) initramfs(k guest.Kernel) (string, block.Digest, error) {
	agent, err := agentbin.Agent(k.Arch)
	if err != nil {
		return "", block.Digest{}, err
	}
	dir := filepath.Join(h.CacheDir, "initramfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", block.Digest{}, fmt.Errorf("making the initramfs cache: %w", err)
	}
	file := filepath.Join(dir, initramfsName(k, agent))
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := h.buildInitramfs(file, k, agent); err != nil {
			return "", block.Digest{}, fmt.Errorf("building the initramfs: %w", err)
		}
	}
	digest, err := fileDigest(file)
	return file, digest, err
}

func (h *Host) buildInitramfs(file string, k guest.Kernel, agent []byte) error {
	dir, err := newWorkDir(h.scratch(), "initramfs-")
	if err != nil {
		return err
	}
	defer dir.remove()
	tmp, err := os.OpenFile(filepath.Join(dir.path, "initramfs"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = guest.Initramfs(tmp, k, agent)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
