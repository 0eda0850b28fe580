package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/sporevm/spore/internal/image/rootfs"
)

// Limits bound what an image may ask for; see [rootfs.Limits].
type Limits = rootfs.Limits

// Options change a Builder's ways. The zero value is right for most.
type Options struct {
	// Limits of an image; fields that are zero take their default.
	Limits Limits
	// Keychain finds registries' credentials; nil reads the docker
	// configuration of the user, credential helpers included.
	Keychain authn.Keychain
	// PlainHTTP lists registries ("host" or "host:port") that may be spoken
	// to without TLS. Those on a loopback address always may.
	PlainHTTP []string
	// Transport carries requests to registries; nil is a sensible default.
	Transport http.RoundTripper
	// AptDir is where the host's apt sources are; empty is /etc/apt.
	AptDir string
}

// Builder makes root file systems and keeps them in a directory. Any number
// of builders, in any number of processes, may share the directory.
type Builder struct {
	cache *cache
	o     Options
}

// New returns a Builder that keeps its files in cacheDir, which is made if
// need be. Files there may be deleted at any time; they are made again.
func New(cacheDir string, o Options) (*Builder, error) {
	o.Limits = o.Limits.WithDefaults()
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.AptDir == "" {
		o.AptDir = "/etc/apt"
	}
	c, err := newCache(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("opening the image cache %s: %w", cacheDir, err)
	}
	return &Builder{cache: c, o: o}, nil
}

// Resolve finds out what ref names right now: the digest that identifies its
// files and how it wants to be run. Fields of p that are empty mean this
// host. Errors are of type [*Error].
func (b *Builder) Resolve(ctx context.Context, ref string, p Platform) (*Image, error) {
	p = p.withDefaults()
	img, err := b.resolve(ctx, ref, p)
	if err != nil {
		return nil, fail(ref, err)
	}
	img.Ref = ref
	return img, nil
}

func (b *Builder) resolve(ctx context.Context, ref string, p Platform) (*Image, error) {
	scheme, rest, _ := strings.Cut(ref, ":")
	switch scheme {
	case "oci":
		return b.resolveLayout(ctx, rest, p)
	case "oci-archive":
		return b.resolveArchive(ctx, rest, p)
	case "docker-archive":
		return b.resolveDocker(ctx, rest, p)
	case "dir":
		return b.resolveDir(ctx, rest, p)
	case "tar":
		return b.resolveTar(ctx, rest, p)
	case "apt":
		return b.resolveApt(ctx, rest, p)
	}
	return b.resolveRegistry(ctx, ref, p)
}

// splitPath cuts an optional ":tag" off a path. A path that exists as it
// stands has no tag.
func splitPath(s string) (path, tag string, err error) {
	if s == "" {
		return "", "", fmt.Errorf("%w: no path", ErrReference)
	}
	if _, err := os.Lstat(s); err == nil {
		return s, "", nil
	}
	i := strings.LastIndexByte(s, ':')
	if i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:], nil
	}
	return s, "", nil
}

// openError makes an error of opening a source's file clear.
func openError(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
