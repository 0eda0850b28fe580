package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files is a tree of files that an image's parts lie in: a directory or an archive.
type files interface {
	// open opens the file called name, a clean relative path.
	open(ctx context.Context, name string) (io.ReadCloser, error)
}

// layout keeps blobs as an OCI layout does.
type layout struct{ files files }

func (l layout) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return l.files.open(ctx, path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex))
}

// folder is files in a directory.
type folder string

func (f folder) open(_ context.Context, name string) (io.ReadCloser, error) {
	return openRegular(filepath.Join(string(f), filepath.FromSlash(name)))
}

func (b *Builder) resolveLayout(ctx context.Context, s string, p Platform) (*Image, error) {
	dir, want, err := splitLayout(s)
	if err != nil {
		return nil, err
	}
	return resolveIn(ctx, folder(dir), want, p)
}

// resolveArchive reads a layout that was packed into one file.
func (b *Builder) resolveArchive(ctx context.Context, s string, p Platform) (*Image, error) {
	file, want, err := splitLayout(s)
	if err != nil {
		return nil, err
	}
	return resolveIn(ctx, archive(file), want, p)
}

// splitLayout cuts "@sha256:…" or ":tag" off a path.
func splitLayout(s string) (path, want string, err error) {
	if i := strings.LastIndex(s, "@sha256:"); i > 0 {
		return s[:i], s[i+1:], nil
	}
	return splitPath(s)
}

// resolveIn finds the image called want, a tag or a digest, in a layout; empty
// takes the only one there is.
func resolveIn(ctx context.Context, from files, want string, p Platform) (*Image, error) {
	raw, err := readFile(ctx, from, "index.json")
	if err != nil {
		return nil, fmt.Errorf("reading the layout's index: %w", err)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: reading the layout's index: %w", ErrCorrupt, err)
	}
	if strings.HasPrefix(want, "sha256:") {
		h, err := v1.NewHash(want)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrReference, err)
		}
		return assemble(ctx, layout{from}, v1.Descriptor{Digest: h}, p)
	}
	var names []string
	var fits []v1.Descriptor
	for _, d := range index.Manifests {
		name := d.Annotations["org.opencontainers.image.ref.name"]
		full := d.Annotations["io.containerd.image.name"]
		if name != "" {
			names = append(names, name)
		}
		if want == "" || want == name || want == full || name != "" && strings.HasSuffix(name, ":"+want) {
			fits = append(fits, d)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case len(fits) == 0 && len(names) > 0:
		return nil, fmt.Errorf("%w: no image %q in the layout; it holds: %s", ErrNotFound, want, strings.Join(names, ", "))
	case len(fits) == 0:
		return nil, fmt.Errorf("%w: no image %q in the layout", ErrNotFound, want)
	case len(fits) == 1:
		return assemble(ctx, layout{from}, fits[0], p)
	}
	if want == "" && len(names) > 1 {
		return nil, &hintError{
			fmt.Errorf("%w: the layout holds %d images: %s", ErrReference, len(names), strings.Join(names, ", ")),
			"name one after a colon",
		}
	}
	// One image for several platforms, listed at the top.
	d, err := choose(fits, p)
	if err != nil {
		return nil, err
	}
	return assemble(ctx, layout{from}, d, p)
}

// readFile reads a small file.
func readFile(ctx context.Context, from files, name string) ([]byte, error) {
	r, err := from.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(p) > maxManifest {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrLimit, name, maxManifest)
	}
	return p, nil
}
