package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// Draft is a snapshot being made. Nothing of it is seen before Commit; every
// Draft must be ended, by Commit or by Abort. Its methods are for one goroutine,
// its two writers may be used by one each.
type Draft struct {
	// Codec is how data is stored. Set it before Disk and Memory.
	Codec block.Codec
	// MemoryBlockSize is the block size, in bytes, of a memory that is not based
	// on a parent's: block.DefaultBlockSize when zero. Set it before Memory.
	MemoryBlockSize int64

	repo   *Repo
	id     uuid.UUID
	parent *Snapshot // nil without
	pin    io.Closer // on the parent; nil without
	out    store.Draft
	disk   *draftImage
	memory *draftImage
	state  *Artifact // nil before State
	over   bool
}

// draftImage is an image being written.
type draftImage struct {
	name   string
	file   store.File
	writer *block.Writer
	base   *block.Header // nil without
	size   int64
}

// NewDraft starts the snapshot id, as a child of parent unless that is nil.
// parent may be closed before the draft ends. The error wraps store.ErrExist when
// there is a snapshot of that id. ctx bounds the draft as a whole.
func (r *Repo) NewDraft(ctx context.Context, id uuid.UUID, parent *Snapshot) (*Draft, error) {
	d := &Draft{repo: r, id: id, parent: parent}
	var err error
	if parent != nil {
		if d.pin, err = r.store.Pin(ctx, parent.ID()); err != nil {
			return nil, fmt.Errorf("starting a child: %w", err)
		}
	}
	if d.out, err = r.store.Begin(ctx, id); err != nil {
		d.end()
		return nil, err
	}
	return d, nil
}

// ID returns the id of the snapshot to be.
func (d *Draft) ID() uuid.UUID { return d.id }

// Disk starts the disk, of size bytes, as changes to the parent's disk where
// there is a parent. If it is never called the disk is the parent's. The writer
// is ended by Commit or Abort.
func (d *Draft) Disk(size int64) (*block.Writer, error) {
	var base *block.Header
	if d.parent != nil {
		base = d.parent.disk.Header()
	}
	return d.start(&d.disk, DiskFile, size, base, 0)
}

// FreshDisk is Disk without the parent's content.
func (d *Draft) FreshDisk(size int64) (*block.Writer, error) {
	return d.start(&d.disk, DiskFile, size, nil, 0)
}

// Memory starts the memory, of size bytes, as changes to the parent's memory where
// the parent has one: then size is the same. If it is never called and a State
// is given, the memory is the parent's. The writer is ended by Commit or Abort.
func (d *Draft) Memory(size int64) (*block.Writer, error) {
	if d.parent == nil || d.parent.memory == nil {
		return d.FreshMemory(size)
	}
	base := d.parent.memory.Header()
	if base.Size != size {
		return nil, fmt.Errorf("making snapshot %s: a memory of %d bytes can't be based on one of %d", d.id, size, base.Size)
	}
	return d.start(&d.memory, MemoryFile, size, base, base.BlockSize)
}

// FreshMemory is Memory without the parent's content: that of a machine which was
// booted, not woken.
func (d *Draft) FreshMemory(size int64) (*block.Writer, error) {
	return d.start(&d.memory, MemoryFile, size, nil, d.MemoryBlockSize)
}

func (d *Draft) start(image **draftImage, name string, size int64, base *block.Header, blockSize int64) (*block.Writer, error) {
	if *image != nil {
		return nil, fmt.Errorf("making snapshot %s: its %s is begun already", d.id, name)
	}
	file, err := d.out.Create(name)
	if err != nil {
		return nil, err
	}
	o := block.WriterOptions{BlockSize: blockSize, Size: size, Codec: d.Codec}
	if base != nil {
		o.BlockSize, o.FrameSize = base.BlockSize, base.FrameSize
	}
	*image = &draftImage{name: name, file: file, writer: block.NewWriter(file, d.id, o), base: base, size: size}
	return (*image).writer, nil
}

// State stores the device state, which makes the snapshot one of a machine.
func (d *Draft) State(data []byte) error {
	switch {
	case d.state != nil:
		return fmt.Errorf("making snapshot %s: its %s is there already", d.id, StateFile)
	case len(data) == 0 || len(data) > MaxStateSize:
		return fmt.Errorf("making snapshot %s: a %s of %d bytes, 1 to %d are allowed", d.id, StateFile, len(data), MaxStateSize)
	}
	a, err := d.put(StateFile, data)
	if err != nil {
		return err
	}
	d.state = &a
	return nil
}

// put writes a whole artifact.
func (d *Draft) put(name string, data []byte) (Artifact, error) {
	f, err := d.out.Create(name)
	if err != nil {
		return Artifact{}, err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return Artifact{}, err
	}
	return Artifact{Size: int64(len(data)), Digest: block.Sum(data)}, nil
}

// Commit publishes the snapshot in one step and opens it. The first group of m's
// fields is filled in. After an error nothing of the draft is left; the error
// wraps store.ErrExist when another process published the id, store.ErrFull when
// the disk is full.
func (d *Draft) Commit(ctx context.Context, m Metadata) (*Snapshot, error) {
	if d.over {
		return nil, fmt.Errorf("making snapshot %s: %w", d.id, store.ErrOver)
	}
	s, err := d.commit(ctx, &m)
	if err != nil {
		return nil, errors.Join(err, d.Abort())
	}
	d.end()
	return s, nil
}

func (d *Draft) commit(ctx context.Context, m *Metadata) (*Snapshot, error) {
	if err := d.complete(); err != nil {
		return nil, err
	}
	s := &Snapshot{store: d.repo.store, far: d.repo.far, meta: m}
	m.Version, m.ID, m.Parent, m.Generation = FormatVersion, d.id, uuid.Nil, 0
	if d.parent != nil {
		m.Parent, m.Generation = d.parent.ID(), d.parent.meta.Generation+1
	}
	if m.Created.IsZero() {
		m.Created = time.Now()
	}
	m.Created = m.Created.UTC().Round(0) // no monotonic part: it is as it will be read
	m.Layers, m.Artifacts = nil, map[string]Artifact{}
	m.DiskBytes = d.disk.size
	disk, err := d.finish(ctx, m, d.disk)
	if err != nil {
		return nil, err
	}
	s.disk = s.reader(DiskFile, disk)
	if d.memory != nil {
		m.MemoryBytes = d.memory.size
		memory, err := d.finish(ctx, m, d.memory)
		if err != nil {
			return nil, err
		}
		s.memory = s.reader(MemoryFile, memory)
		m.Artifacts[StateFile] = *d.state
	}
	data, err := EncodeMetadata(m)
	if err != nil {
		return nil, fmt.Errorf("making snapshot %s: %w", d.id, err)
	}
	s.digest = block.Sum(data)
	if _, err := d.put(MetadataFile, data); err != nil {
		return nil, err
	}
	if err := d.out.Commit(ctx); err != nil {
		return nil, err
	}
	if s.pin, err = d.repo.store.Pin(ctx, d.id); err != nil {
		return nil, fmt.Errorf("snapshot %s was published, but then: %w", d.id, err)
	}
	if d.memory != nil && d.memory.base != nil {
		// A machine that goes on has kernel, agent and shell where its parent has them.
		d.repo.inheritPrefetch(ctx, d.id, d.parent)
	}
	return s, nil
}

// complete starts what is the parent's, and checks that nothing is lacking.
func (d *Draft) complete() error {
	if d.disk == nil {
		if d.parent == nil {
			return fmt.Errorf("making snapshot %s: it has no disk", d.id)
		}
		if _, err := d.Disk(d.parent.meta.DiskBytes); err != nil {
			return err
		}
	}
	if d.memory == nil && d.state != nil && d.parent != nil && d.parent.memory != nil {
		if _, err := d.Memory(d.parent.meta.MemoryBytes); err != nil {
			return err
		}
	}
	if (d.memory == nil) != (d.state == nil) {
		return fmt.Errorf("making snapshot %s: a machine's memory and its %s come together", d.id, StateFile)
	}
	return nil
}

// finish ends an image, writes its header and records both in m.
func (d *Draft) finish(ctx context.Context, m *Metadata, image *draftImage) (*block.Header, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("making snapshot %s: %w", d.id, err)
	}
	h, stats, err := image.writer.Finish(image.base)
	if err == nil {
		err = image.file.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("making %s of snapshot %s: %w", image.name, d.id, err)
	}
	data, err := h.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("making %s of snapshot %s: %w", image.name, d.id, err)
	}
	if m.Artifacts[image.name+".header"], err = d.put(image.name+".header", data); err != nil {
		return nil, err
	}
	m.Artifacts[image.name] = Artifact{Size: stats.Stored}
	for _, l := range h.Layers {
		if l.ID != d.id && !slices.Contains(m.Layers, l.ID) {
			m.Layers = append(m.Layers, l.ID)
		}
	}
	slices.SortFunc(m.Layers, compareIDs)
	return h, nil
}

func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

// contains looks an id up in an ascending list.
func contains(ids []uuid.UUID, id uuid.UUID) bool {
	_, found := slices.BinarySearchFunc(ids, id, compareIDs)
	return found
}

// Abort gives the draft up and leaves nothing of it. After Commit it does
// nothing, so that it can be deferred.
func (d *Draft) Abort() error {
	if d.over {
		return nil
	}
	// The writers first: they still write to the files in the background.
	for _, image := range []*draftImage{d.disk, d.memory} {
		if image != nil {
			image.writer.Abort()
		}
	}
	err := d.out.Abort()
	d.end()
	return err
}

func (d *Draft) end() {
	d.over = true
	if d.pin != nil {
		d.pin.Close()
	}
}
