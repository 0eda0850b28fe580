// Package registry keeps snapshots in OCI registries, as artifacts: one manifest
// names the files of a snapshot and of all whose data it needs, each a blob of a
// media type of its own. The blobs are the files as a store has them, so ids,
// digests and signatures stay what they were, and what several snapshots share is
// kept once.
package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/snapshot"
)

// Media types. A manifest with others in it is refused.
const (
	ArtifactType   = "application/vnd.spore.snapshot.v1+json" // of the manifest and of its config
	typeMetadata   = "application/vnd.spore.metadata.v1+json"
	typeHeader     = "application/vnd.spore.header.v1"
	typeData       = "application/vnd.spore.data.v1"
	typeState      = "application/vnd.spore.state.v1"
	typeSignatures = "application/vnd.spore.signatures.v1"
	typePrefetch   = "application/vnd.spore.prefetch.v1"
)

var mediaTypes = map[string]types.MediaType{
	snapshot.MetadataFile: typeMetadata, snapshot.DiskHeader: typeHeader, snapshot.MemoryHeader: typeHeader,
	snapshot.DiskFile: typeData, snapshot.MemoryFile: typeData, snapshot.StateFile: typeState, snapshot.SignatureFile: typeSignatures,
	snapshot.PrefetchFile: typePrefetch,
}

// titleAnnotation says which file a blob is: <snapshot's id>/<file>.
const titleAnnotation = "org.opencontainers.image.title"

// Limits of a manifest.
const (
	maxManifest = 4 << 20 // bytes, as registries have it
	maxBlobs    = 20_000
	maxConfig   = 4 << 10
)

// ErrForeign is wrapped by errors about an artifact that is no snapshot, or that
// breaks the rules of one.
var ErrForeign = errors.New("not a snapshot of spore")

func foreign(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrForeign}, args...)...)
}

// Options are how registries are spoken to.
type Options struct {
	Keychain  authn.Keychain    // finds credentials; nil reads the docker configuration
	Transport http.RoundTripper // nil: the default
	PlainHTTP []string          // registries ("host" or "host:port") that may be spoken to without TLS; this host always may
}

func (o Options) remote() []remote.Option {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	return []remote.Option{
		remote.WithAuthFromKeychain(keychain), remote.WithTransport(image.SecureTransport(o.Transport, o.PlainHTTP)), remote.WithUserAgent("spore"),
	}
}

// reference reads "host/repository:tag" or "host/repository@sha256:…".
func (o Options) reference(text string) (name.Reference, error) {
	var options []name.Option
	if host, _, _ := strings.Cut(text, "/"); slices.Contains(o.PlainHTTP, host) {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(text, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", image.ErrReference, err)
	}
	return ref, nil
}

// config is what the manifest's config holds.
type config struct {
	Snapshot uuid.UUID `json:"snapshot"`
}

// manifest is an OCI manifest; v1.Manifest lacks the artifact type.
type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        v1.Descriptor   `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
}

// parseManifest reads a manifest that need not be trusted, and returns its blobs by
// snapshot, in the manifest's order, and by file.
func parseManifest(data []byte) (*manifest, []files, error) {
	if len(data) > maxManifest {
		return nil, nil, foreign("a manifest of %d bytes", len(data))
	}
	m := new(manifest)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, nil, foreign("its manifest can't be read: %v", err)
	}
	switch {
	case m.MediaType != types.OCIManifestSchema1:
		return nil, nil, foreign("its manifest is of the type %.80q", m.MediaType)
	case m.ArtifactType != ArtifactType || m.Config.MediaType != ArtifactType:
		return nil, nil, foreign("it is of the type %.80q, with a config of %.80q", m.ArtifactType, m.Config.MediaType)
	case m.Config.Size > maxConfig || m.Config.Size < 0:
		return nil, nil, foreign("its config has %d bytes", m.Config.Size)
	case len(m.Layers) > maxBlobs:
		return nil, nil, foreign("it has %d blobs", len(m.Layers))
	}
	var all []files
	for _, l := range m.Layers {
		dir, file := path.Split(l.Annotations[titleAnnotation])
		id, err := uuid.Parse(strings.TrimSuffix(dir, "/"))
		want, known := mediaTypes[file]
		switch {
		case err != nil || !known:
			return nil, nil, foreign("a blob is called %.120q", l.Annotations[titleAnnotation])
		case l.MediaType != want:
			return nil, nil, foreign("%s is of the type %.80q", file, l.MediaType)
		case l.Size < 0:
			return nil, nil, foreign("%s has %d bytes", file, l.Size)
		}
		if len(all) == 0 || all[len(all)-1].id != id {
			if slices.ContainsFunc(all, func(f files) bool { return f.id == id }) {
				return nil, nil, foreign("the files of snapshot %s do not stand together", id)
			}
			all = append(all, files{id: id, blobs: map[string]v1.Descriptor{}})
		}
		of := all[len(all)-1].blobs
		if _, twice := of[file]; twice {
			return nil, nil, foreign("snapshot %s has two files %s", id, file)
		}
		of[file] = l
	}
	return m, all, nil
}

// files are a snapshot's blobs.
type files struct {
	id    uuid.UUID
	blobs map[string]v1.Descriptor // by file
}
