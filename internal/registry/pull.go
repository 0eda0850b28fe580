package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// Pulled says what a pull did.
type Pulled struct {
	ID      uuid.UUID   // the snapshot
	Digest  string      // of the manifest
	Copied  []uuid.UUID // those that others need first
	Present []uuid.UUID // were there already, the same to the last byte
}

// Pull takes a snapshot, and all whose data it needs, from a registry into repo.
// Everything is checked before it is published, by the registry's digests and by
// the snapshot's own; what is there already is not fetched. progress is as in Push.
func Pull(ctx context.Context, repo *snapshot.Repo, from string, o Options, progress func(done, total int64)) (Pulled, error) {
	ref, err := o.reference(from)
	if err != nil {
		return Pulled{}, err
	}
	puller, err := remote.NewPuller(o.remote()...)
	if err != nil {
		return Pulled{}, fmt.Errorf("pulling %s: %w", ref, err)
	}
	desc, err := puller.Get(ctx, ref)
	if answer, ok := errors.AsType[*transport.Error](err); ok && answer.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", image.ErrNotFound, err)
	}
	if err != nil {
		return Pulled{}, fmt.Errorf("pulling %s: %w", ref, err)
	}
	p := &pull{puller: puller, from: ref.Context(), repo: repo, tally: &tally{tell: progress}, kept: map[v1.Hash][]byte{}}
	p.result.Digest = desc.Digest.String()
	if err := p.run(ctx, desc.Manifest); err != nil {
		return p.result, fmt.Errorf("pulling %s: %w", ref, err)
	}
	return p.result, nil
}

type pull struct {
	puller *remote.Puller
	from   name.Repository
	repo   *snapshot.Repo
	tally  *tally
	result Pulled
	kept   map[v1.Hash][]byte // small blobs that were read ahead of their turn
}

func (p *pull) run(ctx context.Context, data []byte) error {
	m, all, err := parseManifest(data)
	if err != nil {
		return err
	}
	text, err := p.small(ctx, m.Config, maxConfig)
	if err != nil {
		return err
	}
	var c config
	if err := json.Unmarshal(text, &c); err != nil {
		return foreign("its config can't be read: %v", err)
	}
	p.result.ID = c.Snapshot
	found := false
	p.tally.total += m.Config.Size
	for _, f := range all {
		found = found || f.id == c.Snapshot
		for _, d := range f.blobs {
			p.tally.total += d.Size
		}
	}
	if !found {
		return foreign("it has no files of snapshot %s", c.Snapshot)
	}
	p.tally.add(0)
	if err := p.trusted(ctx, all); err != nil {
		return err
	}
	for _, f := range all {
		if err := p.snapshot(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// trusted refuses what nobody may open here before anything of it is published.
func (p *pull) trusted(ctx context.Context, all []files) error {
	for _, f := range all {
		if _, ok := f.blobs[snapshot.MetadataFile]; !ok || f.id != p.result.ID {
			continue // who trusts a snapshot trusts what it needs
		}
		read := map[string][]byte{}
		for _, name := range []string{snapshot.MetadataFile, snapshot.SignatureFile} {
			d, ok := f.blobs[name]
			if !ok {
				continue
			}
			data, err := p.small(ctx, d, snapshot.MaxMetadataSize)
			if err != nil {
				return err
			}
			read[name], p.kept[d.Digest] = data, data
		}
		// One that is here already may have signatures that the registry lacks.
		has, err := p.repo.Has(ctx, read[snapshot.MetadataFile])
		if errors.Is(err, snapshot.ErrMetadata) {
			return nil // told in its turn, by its name
		}
		if has || err != nil {
			return err
		}
		return p.repo.Trusts(read[snapshot.MetadataFile], read[snapshot.SignatureFile])
	}
	return nil
}

// snapshot takes in one snapshot.
func (p *pull) snapshot(ctx context.Context, f files) error {
	d, ok := f.blobs[snapshot.MetadataFile]
	if !ok {
		return foreign("snapshot %s has no %s", f.id, snapshot.MetadataFile)
	}
	metadata, err := p.small(ctx, d, snapshot.MaxMetadataSize)
	if err != nil {
		return err
	}
	m, err := snapshot.DecodeMetadata(metadata)
	if err != nil {
		return &snapshot.CorruptError{ID: f.id, Artifact: snapshot.MetadataFile, Err: err}
	}
	if m.ID != f.id {
		return foreign("the files of snapshot %s are called those of %s", m.ID, f.id)
	}
	has, err := p.repo.Has(ctx, metadata)
	if err != nil {
		return err
	}
	if has {
		p.result.Present = append(p.result.Present, f.id)
		for name, d := range f.blobs {
			switch name {
			case snapshot.MetadataFile, snapshot.SignatureFile, snapshot.PrefetchFile: // read in any case
			default:
				p.tally.add(d.Size)
			}
		}
	} else {
		open := func(ctx context.Context, name string) (io.ReadCloser, error) {
			d, ok := f.blobs[name]
			if !ok {
				return nil, foreign("snapshot %s has no %s", f.id, name)
			}
			if d.Size != m.Artifacts[name].Size {
				return nil, foreign("%s of snapshot %s has %d bytes, its metadata says %d", name, f.id, d.Size, m.Artifacts[name].Size)
			}
			return p.open(ctx, d)
		}
		if err := p.repo.Import(ctx, metadata, open, p.tally.add); err != nil {
			return err
		}
		p.result.Copied = append(p.result.Copied, f.id)
	}
	for _, beside := range []struct {
		name   string
		attach func(context.Context, uuid.UUID, []byte) error
	}{{snapshot.SignatureFile, p.repo.AttachSignatures}, {snapshot.PrefetchFile, p.repo.AttachPrefetch}} {
		d, ok := f.blobs[beside.name]
		if !ok {
			continue
		}
		data, err := p.small(ctx, d, store.MaxAttachment)
		if err == nil {
			err = beside.attach(ctx, f.id, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pull) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	l, err := p.puller.Layer(ctx, p.from.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return l.Compressed() // which checks the digest
}

// small reads a blob of at most limit bytes.
func (p *pull) small(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if data, ok := p.kept[d.Digest]; ok {
		return data, nil
	}
	if d.Size > limit {
		return nil, foreign("a blob of %d bytes, at most %d are allowed", d.Size, limit)
	}
	r, err := p.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != d.Size {
		return nil, foreign("a blob of %d bytes has others than its %d", len(data), d.Size)
	}
	p.tally.add(d.Size)
	return data, nil
}
