package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// dockerImage is an entry of the list that "docker save" puts into its archives.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// resolveDocker reads what "docker save" wrote. Such an archive has no
// manifest; the digest is the config's, which names all layers: docker's
// image ID.
func (b *Builder) resolveDocker(ctx context.Context, s string, p Platform) (*Image, error) {
	file, want, err := splitDocker(s)
	if err != nil {
		return nil, err
	}
	from := archive(file)
	raw, err := readFile(ctx, from, "manifest.json")
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: reading the archive's list of images: %w", ErrCorrupt, err)
	}
	entry, err := pickDocker(list, want)
	if err != nil {
		return nil, err
	}
	rawConfig, err := readFile(ctx, from, path.Clean(entry.Config))
	if err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}
	digest := digestBytes(rawConfig)
	// The file is named for its digest, in one way or another.
	hex := strings.TrimSuffix(path.Base(entry.Config), ".json")
	if len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == "" && "sha256:"+hex != digest {
		return nil, &DigestError{"config", "sha256:" + hex, digest}
	}
	img, diffIDs, err := configure(rawConfig, p)
	if err != nil {
		return nil, err
	}
	if len(diffIDs) != len(entry.Layers) || len(diffIDs) > maxLayers {
		return nil, fmt.Errorf("%w: the config has %d layers, the archive %d", ErrCorrupt, len(diffIDs), len(entry.Layers))
	}
	img.Digest = digest
	for i, name := range entry.Layers {
		img.layers = append(img.layers, layer{
			name:      "layer " + diffIDs[i],
			size:      -1,
			diffID:    diffIDs[i],
			whiteouts: true,
			open: func(ctx context.Context) (io.ReadCloser, error) {
				return from.open(ctx, path.Clean(name))
			},
		})
	}
	return img, nil
}

// splitDocker cuts ":name" off a path; the name may have a tag and slashes of
// its own, so the path is the longest start that is a file.
func splitDocker(s string) (file, want string, err error) {
	if s == "" {
		return "", "", fmt.Errorf("%w: no file", ErrReference)
	}
	for i := len(s); i > 0; i = strings.LastIndexByte(s[:i], ':') {
		f, err := openRegular(s[:i])
		if err != nil {
			continue
		}
		f.Close()
		return s[:i], strings.TrimPrefix(s[i:], ":"), nil
	}
	_, err = openRegular(s)
	return "", "", err
}

// pickDocker finds the image that want names, with or without a tag.
func pickDocker(list []dockerImage, want string) (dockerImage, error) {
	var names []string
	var fits []dockerImage
	for _, m := range list {
		names = append(names, m.RepoTags...)
		if want == "" || slices.ContainsFunc(m.RepoTags, func(tag string) bool {
			return tag == want || tag == want+":latest" || strings.HasSuffix(tag, "/"+want)
		}) {
			fits = append(fits, m)
		}
	}
	slices.Sort(names)
	switch {
	case len(fits) == 1:
		return fits[0], nil
	case len(list) == 0:
		return dockerImage{}, fmt.Errorf("%w: the archive holds no image", ErrNotFound)
	case len(fits) == 0:
		return dockerImage{}, fmt.Errorf("%w: no image %q in the archive; it holds: %s", ErrNotFound, want, strings.Join(names, ", "))
	}
	return dockerImage{}, &hintError{
		fmt.Errorf("%w: the archive holds several images: %s", ErrReference, strings.Join(names, ", ")),
		"name one after a colon",
	}
}
