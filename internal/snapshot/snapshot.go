package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// Snapshot is an open snapshot. While it is open it can't be removed. Its methods
// may be called concurrently.
type Snapshot struct {
	store  store.Store
	far    block.FrameCache // nil: the store is near
	meta   *Metadata
	digest block.Digest
	disk   *block.Reader
	memory *block.Reader // nil without memory
	pin    io.Closer
	reads  int
}

// OpenID opens a snapshot: metadata.json and the header of each artifact are read
// and checked, which takes as many reads at any depth of ancestry. Data is read,
// and checked, when it is asked for. Errors are of type *NotFoundError or
// *CorruptError, or the store's.
func (r *Repo) OpenID(ctx context.Context, id uuid.UUID) (*Snapshot, error) {
	s, err := r.open(ctx, id)
	if err != nil || r.trust == nil {
		return s, err
	}
	all, err := r.Signatures(ctx, id)
	if err == nil {
		err = r.trust(s, all)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// open is OpenID for a snapshot that need not be trusted.
func (r *Repo) open(ctx context.Context, id uuid.UUID) (*Snapshot, error) {
	pin, err := r.store.Pin(ctx, id)
	if err != nil {
		return nil, r.notFound(ctx, id.String(), err)
	}
	s := &Snapshot{store: r.store, far: r.far, pin: pin}
	if err := s.load(ctx, id); err != nil {
		pin.Close()
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) load(ctx context.Context, id uuid.UUID) error {
	var err error
	s.reads++
	if s.meta, s.digest, err = readMetadata(ctx, s.store, id); err != nil {
		return err
	}
	if s.disk, err = s.openImage(ctx, DiskFile, s.meta.DiskBytes); err != nil {
		return err
	}
	if s.meta.HasMemory() {
		s.memory, err = s.openImage(ctx, MemoryFile, s.meta.MemoryBytes)
	}
	return err
}

// openImage reads the header of the image whose data is in the file name.
func (s *Snapshot) openImage(ctx context.Context, name string, size int64) (*block.Reader, error) {
	artifact := name + ".header"
	s.reads++
	data, err := s.read(ctx, artifact)
	if err != nil {
		return nil, err
	}
	h, err := block.DecodeHeader(bytes.NewReader(data))
	if err == nil {
		err = s.matches(h, size)
	}
	if err != nil {
		return nil, &CorruptError{ID: s.meta.ID, Artifact: artifact, Err: err}
	}
	return s.reader(name, h), nil
}

// matches holds a header against the metadata. Its digest was right, so this
// finds faults of the writer.
func (s *Snapshot) matches(h *block.Header, size int64) error {
	switch {
	case h.ID != s.meta.ID:
		return fmt.Errorf("it is of snapshot %s", h.ID)
	case h.Size != size:
		return fmt.Errorf("it describes %d bytes, %s says %d", h.Size, MetadataFile, size)
	}
	for _, l := range h.Layers {
		if l.ID != s.meta.ID && !contains(s.meta.Layers, l.ID) {
			return fmt.Errorf("it needs layer %s, which %s does not list", l.ID, MetadataFile)
		}
	}
	return nil
}

// MemoryReader reads the memory that the whole header h describes, for a process that
// was told the header by one that has the snapshot open, has checked it and keeps it.
func (r *Repo) MemoryReader(h *block.Header) *block.Reader {
	s := Snapshot{store: r.store, far: r.far, meta: &Metadata{ID: h.ID}}
	return s.reader(MemoryFile, h)
}

// IsFar tells whether the store is far away.
func (r *Repo) IsFar() bool { return r.far != nil }

func (s *Snapshot) reader(name string, h *block.Header) *block.Reader {
	var options []block.ReaderOption
	if s.far != nil {
		options = append(options, block.WithCache(s.far))
	}
	return block.NewReader(fmt.Sprintf("%s of snapshot %s", name, s.meta.ID), h, layerSource{s.store, name}, options...)
}

// read returns the content of an artifact that has a digest in the metadata.
func (s *Snapshot) read(ctx context.Context, name string) ([]byte, error) {
	want := s.meta.Artifacts[name]
	data, err := readAll(ctx, s.store, s.meta.ID, name, want.Size)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != want.Size {
		err = fmt.Errorf("it has not the %d bytes that %s says", want.Size, MetadataFile)
	} else if digest := block.Sum(data); digest != want.Digest {
		err = fmt.Errorf("its digest is %s, %s says %s", digest, MetadataFile, want.Digest)
	}
	if err != nil {
		return nil, &CorruptError{ID: s.meta.ID, Artifact: name, Err: err}
	}
	return data, nil
}

// readAll reads an artifact of which no more than limit bytes are expected. Of a
// longer one it returns a byte too many.
func readAll(ctx context.Context, st store.Store, id uuid.UUID, name string, limit int64) ([]byte, error) {
	o, err := openArtifact(ctx, st, id, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	data := make([]byte, min(o.Size(), limit+1))
	n, err := o.ReadAt(data, 0)
	if n == len(data) || errors.Is(err, io.EOF) {
		return data[:n], nil
	}
	return nil, &store.Error{Op: "reading", ID: id, Artifact: name, Err: err}
}

// openArtifact opens a file that has to be there.
func openArtifact(ctx context.Context, st store.Store, id uuid.UUID, name string) (store.Object, error) {
	o, err := st.Open(ctx, id, name)
	if errors.Is(err, store.ErrNoArtifact) {
		return nil, &CorruptError{ID: id, Artifact: name, Err: store.ErrNoArtifact}
	}
	return o, err
}

// readMetadata reads and checks metadata.json; the digest is of its bytes.
func readMetadata(ctx context.Context, st store.Store, id uuid.UUID) (*Metadata, block.Digest, error) {
	data, err := readAll(ctx, st, id, MetadataFile, MaxMetadataSize)
	if err != nil {
		return nil, block.Digest{}, err
	}
	m, err := DecodeMetadata(data)
	if err == nil && m.ID != id {
		err = fmt.Errorf("it is of snapshot %s", m.ID)
	}
	if err != nil {
		return nil, block.Digest{}, &CorruptError{ID: id, Artifact: MetadataFile, Err: err}
	}
	return m, block.Sum(data), nil
}

// layerSource opens the data files of the layers of one image.
type layerSource struct {
	store store.Store
	name  string
}

// Layer implements block.Source.
func (l layerSource) Layer(ctx context.Context, id uuid.UUID) (io.ReaderAt, error) {
	return openArtifact(ctx, l.store, id, l.name)
}

// ID returns the snapshot's id.
func (s *Snapshot) ID() uuid.UUID { return s.meta.ID }

// Metadata returns the checked metadata, which must not be changed.
func (s *Snapshot) Metadata() *Metadata { return s.meta }

// Digest returns the snapshot's digest: that of metadata.json, and through it of
// everything in the snapshot.
func (s *Snapshot) Digest() block.Digest { return s.digest }

// Disk returns the disk. It is closed with the snapshot.
func (s *Snapshot) Disk() *block.Reader { return s.disk }

// Memory returns the memory, or nil when the snapshot is a disk alone. It is
// closed with the snapshot.
func (s *Snapshot) Memory() *block.Reader { return s.memory }

// OpenReads is how many objects were read to open the snapshot.
func (s *Snapshot) OpenReads() int { return s.reads }

// State reads and checks the device state. It is an error to ask for it when the
// snapshot is a disk alone.
func (s *Snapshot) State(ctx context.Context) ([]byte, error) {
	if !s.meta.HasMemory() {
		return nil, fmt.Errorf("snapshot %s is a disk alone: it has no %s", s.meta.ID, StateFile)
	}
	return s.read(ctx, StateFile)
}

// Close closes the readers and lets the snapshot be removed.
func (s *Snapshot) Close() error {
	var err error
	if s.memory != nil {
		err = s.memory.Close()
	}
	return errors.Join(err, s.disk.Close(), s.pin.Close())
}
