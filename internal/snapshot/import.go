package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// Closure returns the ids of a snapshot and of all whose data it needs, in an order
// in which they can be published: those that others need first.
func (r *Repo) Closure(ctx context.Context, id uuid.UUID) ([]uuid.UUID, error) {
	found := map[uuid.UUID]*Metadata{}
	for queue := []uuid.UUID{id}; len(queue) > 0; queue = queue[1:] {
		if found[queue[0]] != nil {
			continue
		}
		m, _, err := readMetadata(ctx, r.store, queue[0])
		if err != nil {
			return nil, err
		}
		found[m.ID] = m
		queue = append(queue, m.Layers...)
	}
	ids := make([]uuid.UUID, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int {
		if d := int64(found[a].Generation) - int64(found[b].Generation); d != 0 {
			return int(d)
		}
		return compareIDs(a, b)
	})
	return ids, nil
}

// Artifacts returns the names of a snapshot's files, metadata.json the first, and
// its signatures and its prefetch list if it has any.
func (r *Repo) Artifacts(ctx context.Context, id uuid.UUID) ([]string, error) {
	m, _, err := readMetadata(ctx, r.store, id)
	if err != nil {
		return nil, err
	}
	names := []string{MetadataFile}
	for _, name := range []string{DiskHeader, DiskFile, MemoryHeader, MemoryFile, StateFile} {
		if _, has := m.Artifacts[name]; has {
			names = append(names, name)
		}
	}
	if all, err := r.Signatures(ctx, id); err != nil {
		return nil, err
	} else if len(all) > 0 {
		names = append(names, SignatureFile)
	}
	if pages, err := r.Prefetch(ctx, id); err == nil && pages != nil { // one that can't be read is worth nothing
		names = append(names, PrefetchFile)
	}
	return names, nil
}

// Artifact opens a file of a snapshot as it is stored, unchecked.
func (r *Repo) Artifact(ctx context.Context, id uuid.UUID, name string) (store.Object, error) {
	return openArtifact(ctx, r.store, id, name)
}

// Has tells whether a snapshot is there with the digest that metadata, the content
// of a metadata.json, has. The error is a *ConflictError if another one is.
func (r *Repo) Has(ctx context.Context, metadata []byte) (bool, error) {
	m, err := DecodeMetadata(metadata)
	if err != nil {
		return false, err
	}
	_, digest, err := readMetadata(ctx, r.store, m.ID)
	switch {
	case errors.Is(err, store.ErrNoSnapshot):
		return false, nil
	case err != nil:
		return false, err
	case digest != block.Sum(metadata):
		return false, &ConflictError{ID: m.ID, Here: digest, From: block.Sum(metadata)}
	}
	return true, nil
}

// Import publishes a snapshot that comes from elsewhere: metadata is the content of
// its metadata.json, open gives the others of its files, each read once from start
// to end. All of it is checked as it comes, before anything is published; what it
// needs of other snapshots must be there. One that is there already is left as it
// is. progress, which may be nil, hears how many bytes came since the last call.
func (r *Repo) Import(ctx context.Context, metadata []byte, open func(ctx context.Context, name string) (io.ReadCloser, error), progress func(n int64)) error {
	m, err := DecodeMetadata(metadata)
	if err != nil {
		return err
	}
	if has, err := r.Has(ctx, metadata); has || err != nil {
		return err
	}
	for _, layer := range m.Layers {
		if _, _, err := readMetadata(ctx, r.store, layer); err != nil {
			return fmt.Errorf("snapshot %s needs another: %w", m.ID, err)
		}
	}
	draft, err := r.store.Begin(ctx, m.ID)
	if err != nil {
		return err
	}
	defer draft.Abort()
	i := &importer{meta: m, draft: draft, open: open, progress: progress}
	if i.progress == nil {
		i.progress = func(int64) {}
	}
	if err := i.image(ctx, DiskFile, m.DiskBytes); err != nil {
		return err
	}
	if m.HasMemory() {
		if err := i.image(ctx, MemoryFile, m.MemoryBytes); err != nil {
			return err
		}
		if _, err := i.small(ctx, StateFile); err != nil {
			return err
		}
	}
	if err := i.put(MetadataFile, metadata); err != nil {
		return err
	}
	err = draft.Commit(ctx)
	if errors.Is(err, store.ErrExist) { // somebody else was quicker
		_, err = r.Has(ctx, metadata)
	}
	return err
}

// importer is one import under way.
type importer struct {
	meta     *Metadata
	draft    store.Draft
	open     func(ctx context.Context, name string) (io.ReadCloser, error)
	progress func(n int64)
}

func (i *importer) corrupt(name string, err error) error {
	return &CorruptError{ID: i.meta.ID, Artifact: name, Err: err}
}

func (i *importer) put(name string, data []byte) error {
	f, err := i.draft.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// small takes in a file that has a digest in the metadata.
func (i *importer) small(ctx context.Context, name string) ([]byte, error) {
	want := i.meta.Artifacts[name]
	in, err := i.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, want.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != want.Size || block.Sum(data) != want.Digest {
		return nil, i.corrupt(name, errors.New("it is not what the metadata says"))
	}
	i.progress(want.Size)
	return data, i.put(name, data)
}

// image takes in a header and then the data that it describes.
func (i *importer) image(ctx context.Context, name string, size int64) error {
	data, err := i.small(ctx, name+".header")
	if err != nil {
		return err
	}
	h, err := block.DecodeHeader(bytes.NewReader(data))
	if err == nil {
		err = (&Snapshot{meta: i.meta}).matches(h, size)
	}
	if err != nil {
		return i.corrupt(name+".header", err)
	}
	in, err := i.open(ctx, name)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := i.draft.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := h.CopyStream(ctx, i.meta.ID, f, in, i.progress); err != nil {
		return i.corrupt(name, err)
	}
	if f.Size() != i.meta.Artifacts[name].Size {
		return i.corrupt(name, fmt.Errorf("its header describes %d bytes, %s says %d", f.Size(), MetadataFile, i.meta.Artifacts[name].Size))
	}
	return f.Close()
}
