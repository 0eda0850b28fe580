package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// maxManifest is the largest manifest, index or config that is read.
	maxManifest = 8 << 20
	// maxLayers is the largest number of layers; tools stop at 127.
	maxLayers = 1024
	// maxNesting is how many indexes may lie within one another.
	maxNesting = 4
)

// blobs is a place that keeps an image's parts under their digests.
type blobs interface {
	// open reads the bytes of a manifest or another blob. They need not be
	// checked against the digest.
	open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// readBlob reads a small blob and checks it.
func readBlob(ctx context.Context, from blobs, d v1.Descriptor, what string) ([]byte, error) {
	if d.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("%w: %s with the digest %q", ErrUnsupported, what, d.Digest)
	}
	if len(d.Data) > 0 && digestBytes(d.Data) == d.Digest.String() {
		return d.Data, nil
	}
	r, err := from.open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("opening the %s: %w", what, err)
	}
	defer r.Close()
	p, err := io.ReadAll(io.LimitReader(&cancellable{ctx, r}, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("reading the %s: %w", what, err)
	}
	if len(p) > maxManifest {
		return nil, fmt.Errorf("%w: a %s of more than %d bytes", ErrLimit, what, maxManifest)
	}
	if got := digestBytes(p); got != d.Digest.String() {
		return nil, &DigestError{what, d.Digest.String(), got}
	}
	return p, nil
}

// assemble makes an Image of what d describes: a manifest, or an index in
// which the manifest for p is looked for.
func assemble(ctx context.Context, from blobs, d v1.Descriptor, p Platform) (*Image, error) {
	for range maxNesting {
		raw, err := readBlob(ctx, from, d, "manifest")
		if err != nil {
			return nil, err
		}
		kind, err := manifestKind(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		switch {
		case kind.IsImage():
			return assembleImage(ctx, from, d, raw, p)
		case !kind.IsIndex():
			return nil, fmt.Errorf("%w: a manifest of type %q", ErrUnsupported, kind)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%w: reading the index: %w", ErrCorrupt, err)
		}
		if d, err = choose(index.Manifests, p); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: indexes nested more than %d deep", ErrLimit, maxNesting)
}

// manifestKind is the media type that a manifest gives itself, or that it was
// announced with. Old ones say neither, and show what they are by their fields.
func manifestKind(raw []byte, announced types.MediaType) (types.MediaType, error) {
	var m struct {
		MediaType types.MediaType   `json:"mediaType"`
		Schema    int               `json:"schemaVersion"`
		Manifests []json.RawMessage `json:"manifests"`
		Layers    []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("%w: reading the manifest: %w", ErrCorrupt, err)
	}
	switch {
	case m.Schema == 1:
		return "", &hintError{fmt.Errorf("%w: a manifest of schema version 1", ErrUnsupported), "push the image again with a current tool"}
	case m.MediaType != "":
		return m.MediaType, nil
	case m.Manifests != nil:
		return types.OCIImageIndex, nil
	case m.Layers != nil:
		return types.OCIManifestSchema1, nil
	}
	return announced, nil
}

// choose picks the manifest for p. Entries that name no platform are taken
// only if nothing else is there.
func choose(list []v1.Descriptor, p Platform) (v1.Descriptor, error) {
	var have []string
	var nameless, fits []v1.Descriptor
	for _, d := range list {
		switch {
		case d.MediaType != "" && !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			nameless = append(nameless, d)
		case d.Platform.OS == "unknown":
			// a builder's notes on another entry
		default:
			q := Platform{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}
			have = append(have, q.String())
			if q.OS == p.OS && q.Arch == p.Arch && (p.Variant == "" || q.Variant == p.Variant) {
				fits = append(fits, d)
			}
		}
	}
	if len(fits) > 0 {
		return fits[0], nil
	}
	if len(have) == 0 && len(nameless) == 1 {
		return nameless[0], nil
	}
	slices.Sort(have)
	return v1.Descriptor{}, &PlatformError{Want: p, Have: slices.Compact(have)}
}

func assembleImage(ctx context.Context, from blobs, d v1.Descriptor, raw []byte, p Platform) (*Image, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: reading the manifest: %w", ErrCorrupt, err)
	}
	rawConfig, err := readBlob(ctx, from, m.Config, "config")
	if err != nil {
		return nil, err
	}
	img, diffIDs, err := configure(rawConfig, p)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers", ErrLimit, len(m.Layers))
	}
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: the config has %d layers, the manifest %d", ErrCorrupt, len(diffIDs), len(m.Layers))
	}
	img.Digest = d.Digest.String()
	for i, l := range m.Layers {
		if l.Digest.Algorithm != "sha256" {
			return nil, fmt.Errorf("%w: layer with the digest %q", ErrUnsupported, l.Digest)
		}
		if !l.MediaType.IsLayer() && !strings.HasPrefix(string(l.MediaType), string(types.OCILayerZStd)) {
			return nil, fmt.Errorf("%w: layer of type %q: not a container image", ErrUnsupported, l.MediaType)
		}
		img.layers = append(img.layers, layer{
			name:      "layer " + l.Digest.String(),
			digest:    l.Digest.String(),
			size:      l.Size,
			diffID:    diffIDs[i],
			whiteouts: true,
			open: func(ctx context.Context) (io.ReadCloser, error) {
				return from.open(ctx, l)
			},
		})
	}
	return img, nil
}

// configure reads an image's config: how it wants to be run, what for, and
// the digests of its uncompressed layers.
func configure(raw []byte, p Platform) (*Image, []string, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: reading the config: %w", ErrCorrupt, err)
	}
	have := Platform{c.OS, c.Architecture, c.Variant}
	if c.OS != "" && c.OS != p.OS || c.Architecture != "" && c.Architecture != p.Arch ||
		p.Variant != "" && c.Variant != "" && c.Variant != p.Variant {
		return nil, nil, &PlatformError{Want: p, Have: []string{have.String()}}
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return nil, nil, fmt.Errorf("%w: root file system of type %q", ErrUnsupported, c.RootFS.Type)
	}
	var diffIDs []string
	for _, id := range c.RootFS.DiffIDs {
		if id.Algorithm != "sha256" {
			return nil, nil, fmt.Errorf("%w: layer with the digest %q", ErrUnsupported, id)
		}
		diffIDs = append(diffIDs, id.String())
	}
	return &Image{
		Platform: Platform{p.OS, p.Arch, c.Variant},
		Config: Config{
			Entrypoint:   c.Config.Entrypoint,
			Cmd:          c.Config.Cmd,
			Env:          c.Config.Env,
			WorkingDir:   c.Config.WorkingDir,
			User:         c.Config.User,
			Labels:       c.Config.Labels,
			ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
		},
	}, diffIDs, nil
}
