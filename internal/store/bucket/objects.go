package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"

	"github.com/sporevm/spore/internal/store"
)

// What an object's metadata says.
const (
	folderField = "folder" // of the manifest: where the snapshot's other objects lie
	sizeField   = "size"   // of a compressed object: bytes that it expands to
)

// compressed tells which objects are kept compressed. They are read in parts; the
// others are small or read as a whole.
func compressed(artifact string) bool { return artifact == "memfile" || artifact == "rootfs.ext4" }

// Open implements store.Store.
func (b *Bucket) Open(ctx context.Context, id uuid.UUID, artifact string) (store.Object, error) {
	const op = "opening"
	if err := store.CheckArtifact(artifact); err != nil {
		return nil, fail(op, id, artifact, err)
	}
	key, err := b.key(ctx, id, artifact, false)
	if err != nil {
		return nil, fail(op, id, artifact, err)
	}
	attrs, err := b.attributes(ctx, key)
	if err == nil && attrs == nil { // not there, or removed and published anew
		if key, err = b.key(ctx, id, artifact, true); err == nil {
			attrs, err = b.attributes(ctx, key)
		}
	}
	if err != nil {
		return nil, fail(op, id, artifact, err)
	}
	if attrs == nil {
		return nil, fail(op, id, artifact, b.missing(ctx, id))
	}
	o := &object{bucket: b, key: key, size: attrs.Size}
	o.ctx, o.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if !compressed(artifact) {
		return o, nil
	}
	s, err := openSeekable(ctx, o, attrs.Size, attrs.Metadata[sizeField])
	if err != nil {
		o.Close()
		return nil, fail(op, id, artifact, err)
	}
	return s, nil
}

// key is where an artifact of a published snapshot lies. anew says that what was
// seen before is not to be believed.
func (b *Bucket) key(ctx context.Context, id uuid.UUID, artifact string, anew bool) (string, error) {
	if artifact == store.Manifest {
		return id.String() + "/" + artifact, nil
	}
	if folder, ok := b.folders.Load(id); ok && !anew {
		return id.String() + "/" + folder.(string) + "/" + artifact, nil
	}
	folder, err := b.folder(ctx, id)
	if err != nil {
		return "", err
	}
	b.folders.Store(id, folder)
	return id.String() + "/" + folder + "/" + artifact, nil
}

// folder asks the manifest where the other objects lie.
func (b *Bucket) folder(ctx context.Context, id uuid.UUID) (string, error) {
	attrs, err := b.attributes(ctx, manifestKey(id))
	if err != nil {
		return "", err
	}
	if attrs == nil {
		return "", store.ErrNoSnapshot
	}
	folder := attrs.Metadata[folderField]
	if _, err := uuid.Parse(folder); err != nil {
		return "", fmt.Errorf("%s does not say where its objects are: it was not put there by this program", store.Manifest)
	}
	return folder, nil
}

// missing tells which part of a snapshot is not there.
func (b *Bucket) missing(ctx context.Context, id uuid.UUID) error {
	published, err := b.published(ctx, id)
	switch {
	case err != nil:
		return err
	case !published:
		return store.ErrNoSnapshot
	}
	return store.ErrNoArtifact
}

func (b *Bucket) published(ctx context.Context, id uuid.UUID) (bool, error) {
	attrs, err := b.attributes(ctx, manifestKey(id))
	return attrs != nil, err
}

// Published implements store.Store.
func (b *Bucket) Published(ctx context.Context, id uuid.UUID) (time.Time, error) {
	attrs, err := b.attributes(ctx, manifestKey(id))
	if err == nil && attrs == nil {
		err = store.ErrNoSnapshot
	}
	if err != nil {
		return time.Time{}, fail("looking at", id, "", err)
	}
	return attrs.ModTime, nil
}

// List implements store.Store.
func (b *Bucket) List(ctx context.Context) ([]uuid.UUID, error) {
	var ids []uuid.UUID
	err := b.each(ctx, "", func(o *blob.ListObject) error {
		dir, isManifest := strings.CutSuffix(o.Key, "/"+store.Manifest)
		if id, err := uuid.Parse(dir); isManifest && err == nil && id.String() == dir {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the store: %w", err)
	}
	return ids, nil // keys come in order, and so do the ids
}

// object is an object as it is kept.
type object struct {
	bucket *Bucket
	key    string
	size   int64
	ctx    context.Context // until Close: io.ReaderAt has none
	cancel context.CancelFunc
}

// Size implements store.Object.
func (o *object) Size() int64 { return o.size }

// ReadAt implements io.ReaderAt.
func (o *object) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("reading at a negative offset")
	}
	n := min(int64(len(p)), max(o.size-off, 0))
	if n > 0 {
		if err := o.bucket.readRange(o.ctx, o.key, p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Close implements io.Closer.
func (o *object) Close() error {
	o.cancel()
	return nil
}

// Attach implements store.Store.
func (b *Bucket) Attach(ctx context.Context, id uuid.UUID, artifact string, data []byte) error {
	const op = "attaching"
	if err := store.CheckAttachment(artifact, data); err != nil {
		return fail(op, id, artifact, err)
	}
	pin, err := b.pin(ctx, id)
	if err != nil {
		return fail(op, id, artifact, err)
	}
	defer pin.Close()
	key, err := b.key(ctx, id, artifact, true)
	if err == nil {
		err = b.put(ctx, key, data, nil)
	}
	return fail(op, id, artifact, err)
}
