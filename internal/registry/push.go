package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/snapshot"
)

// transfers is how many blobs are under way at once.
const transfers = 4

// Push puts a snapshot, and all whose data it needs, into a registry and returns
// the manifest's digest. Blobs that the registry has are not sent again. Files are
// sent as they are stored: verify the snapshot before. progress, which may be nil,
// hears how much of how many bytes is done; calls of it do not overlap.
func Push(ctx context.Context, repo *snapshot.Repo, id uuid.UUID, to string, o Options, progress func(done, total int64)) (string, error) {
	ref, err := o.reference(to)
	if err != nil {
		return "", err
	}
	pusher, err := remote.NewPusher(o.remote()...)
	if err != nil {
		return "", fmt.Errorf("pushing to %s: %w", ref, err)
	}
	ids, err := repo.Closure(ctx, id)
	if err != nil {
		return "", err
	}
	var blobs []*blob
	t := &tally{tell: progress}
	for _, id := range ids {
		names, err := repo.Artifacts(ctx, id)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			b := &blob{ctx: ctx, repo: repo, id: id, name: name, tally: t}
			if err := b.digest(); err != nil {
				return "", err
			}
			t.total += b.size
			blobs = append(blobs, b)
		}
	}
	conf, err := json.Marshal(config{Snapshot: id})
	if err != nil {
		return "", err
	}
	configLayer := static.NewLayer(conf, ArtifactType)
	m := manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: ArtifactType}
	if m.Config, err = descriptor(configLayer); err != nil {
		return "", err
	}
	t.add(0)
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(transfers)
	g.Go(func() error { return pusher.Upload(inner, ref.Context(), configLayer) })
	for _, b := range blobs {
		d, err := descriptor(b)
		if err != nil {
			return "", err
		}
		d.Annotations = map[string]string{titleAnnotation: b.id.String() + "/" + b.name}
		m.Layers = append(m.Layers, d)
		g.Go(func() error {
			err := pusher.Upload(inner, ref.Context(), b)
			t.add(b.size - b.told) // what the registry had
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", fmt.Errorf("pushing to %s: %w", ref, err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	if len(data) > maxManifest {
		return "", fmt.Errorf("pushing to %s: the manifest of %d snapshots takes %d bytes, too many for registries: push a squashed snapshot", ref, len(ids), len(data))
	}
	if err := pusher.Push(ctx, ref, raw(data)); err != nil {
		return "", fmt.Errorf("pushing to %s: %w", ref, err)
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

func descriptor(l v1.Layer) (v1.Descriptor, error) {
	digest, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	mediaType, err := l.MediaType()
	return v1.Descriptor{MediaType: mediaType, Size: size, Digest: digest}, err
}

// raw is a manifest as bytes.
type raw []byte

// RawManifest implements remote.Taggable.
func (r raw) RawManifest() ([]byte, error) { return r, nil }

// MediaType says what it is.
func (r raw) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// tally adds up what was moved.
type tally struct {
	mu          sync.Mutex
	done, total int64
	tell        func(done, total int64)
}

func (t *tally) add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
	if t.tell != nil {
		t.tell(t.done, t.total)
	}
}

// blob is a snapshot's file as a layer.
type blob struct {
	ctx   context.Context // of the push: v1.Layer has none
	repo  *snapshot.Repo
	id    uuid.UUID
	name  string
	tally *tally

	size int64
	hash v1.Hash
	told int64 // bytes that the tally has heard of
}

// digest reads the file for the digest that registries go by.
func (b *blob) digest() error {
	r, err := b.open()
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	if b.size, err = io.Copy(sum, r); err != nil {
		return err
	}
	b.hash = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	return b.ctx.Err()
}

func (b *blob) open() (io.ReadCloser, error) {
	o, err := b.repo.Artifact(b.ctx, b.id, b.name)
	if err != nil {
		return nil, err
	}
	return &stream{Reader: io.NewSectionReader(o, 0, o.Size()), Closer: o}, nil
}

type stream struct {
	io.Reader
	io.Closer
}

// Digest implements v1.Layer.
func (b *blob) Digest() (v1.Hash, error) { return b.hash, nil }

// DiffID implements v1.Layer.
func (b *blob) DiffID() (v1.Hash, error) { return b.hash, nil }

// Size implements v1.Layer.
func (b *blob) Size() (int64, error) { return b.size, nil }

// MediaType implements v1.Layer.
func (b *blob) MediaType() (types.MediaType, error) { return mediaTypes[b.name], nil }

// Uncompressed implements v1.Layer.
func (b *blob) Uncompressed() (io.ReadCloser, error) { return b.Compressed() }

// Compressed implements v1.Layer: the file as it is stored. It may be asked for
// again after a failure.
func (b *blob) Compressed() (io.ReadCloser, error) {
	r, err := b.open()
	if err != nil {
		return nil, err
	}
	b.tally.add(-b.told)
	b.told = 0
	return &stream{Reader: io.TeeReader(r, (*counted)(b)), Closer: r}, nil
}

// counted tells the tally what passes.
type counted blob

// Write implements io.Writer.
func (c *counted) Write(p []byte) (int, error) {
	c.told += int64(len(p))
	c.tally.add(int64(len(p)))
	return len(p), nil
}
