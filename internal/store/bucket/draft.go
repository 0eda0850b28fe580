package bucket

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/sporevm/spore/internal/store"
)

// draft is a store.Draft in a bucket. Its objects go up when they are closed, into
// a folder that only it uses; the manifest is what makes them seen.
type draft struct {
	bucket *Bucket
	ctx    context.Context // bounds the draft as a whole
	id     uuid.UUID
	folder string

	mu     sync.Mutex
	files  map[string]*draftFile
	broken error // of the first upload that failed
	over   bool
}

// Begin implements store.Store. Nothing is written yet.
func (b *Bucket) Begin(ctx context.Context, id uuid.UUID) (store.Draft, error) {
	const op = "starting"
	if err := ctx.Err(); err != nil {
		return nil, fail(op, id, "", err)
	}
	if id == uuid.Nil {
		return nil, fail(op, id, "", errors.New("the nil UUID stands for no snapshot"))
	}
	published, err := b.published(ctx, id)
	if err == nil && published {
		err = store.ErrExist
	}
	if err != nil {
		return nil, fail(op, id, "", err)
	}
	return &draft{bucket: b, ctx: ctx, id: id, folder: uuid.NewString(), files: map[string]*draftFile{}}, nil
}

// Create implements store.Draft.
func (d *draft) Create(artifact string) (store.File, error) {
	const op = "creating"
	if err := store.CheckArtifact(artifact); err != nil {
		return nil, fail(op, d.id, artifact, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mayCreate(artifact); err != nil {
		return nil, fail(op, d.id, artifact, err)
	}
	spool, err := os.CreateTemp(d.bucket.options.TempDir, "upload-*")
	if err != nil {
		return nil, fail(op, d.id, artifact, err)
	}
	os.Remove(spool.Name()) // it lives as long as it is open
	f := &draftFile{draft: d, name: artifact, spool: spool}
	d.files[artifact] = f
	return f, nil
}

func (d *draft) mayCreate(artifact string) error {
	switch {
	case d.over:
		return store.ErrOver
	case d.broken != nil:
		return d.broken
	case d.files[artifact] != nil:
		return fs.ErrExist
	case d.files[store.Manifest] != nil:
		return fmt.Errorf("%s was begun, and is the last", store.Manifest)
	case artifact == store.Manifest:
		return d.allClosed()
	}
	return nil
}

func (d *draft) allClosed() error {
	for name, f := range d.files {
		if !f.closed {
			return fmt.Errorf("%s is still being written", name)
		}
	}
	return nil
}

// Commit implements store.Draft.
func (d *draft) Commit(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return fail("publishing", d.id, "", store.ErrOver)
	}
	if err := d.publish(ctx); err != nil {
		return errors.Join(fail("publishing", d.id, "", err), d.end(true))
	}
	return fail("publishing", d.id, "", d.end(false))
}

func (d *draft) publish(ctx context.Context) error {
	if d.broken != nil {
		return d.broken
	}
	if err := d.allClosed(); err != nil {
		return err
	}
	manifest := d.files[store.Manifest]
	if manifest == nil {
		return fmt.Errorf("%s was not written", store.Manifest)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	data, err := io.ReadAll(io.NewSectionReader(manifest.spool, 0, manifest.size))
	if err != nil {
		return err
	}
	err = d.bucket.put(ctx, manifestKey(d.id), data, &blob.WriterOptions{
		IfNotExist: true, ContentType: "application/json", Metadata: map[string]string{folderField: d.folder},
	})
	if err == nil {
		return nil
	}
	// The answer to a put that went through may be lost, and its repetition refused.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.bucket.options.Timeout)
	defer cancel()
	folder, look := d.bucket.folder(settle, d.id)
	switch {
	case look == nil && folder == d.folder:
		return nil
	case look == nil || gcerrors.Code(err) == gcerrors.FailedPrecondition:
		return store.ErrExist
	}
	return err
}

// Abort implements store.Draft.
func (d *draft) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return nil
	}
	return fail("giving up", d.id, "", d.end(true))
}

// end closes the spools and, unless it was published, deletes what went up. What
// can't be deleted now is garbage for Sweep.
func (d *draft) end(remove bool) error {
	d.over = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), d.bucket.options.Timeout)
	defer cancel()
	var errs []error
	for name, f := range d.files {
		f.closed = true
		f.spool.Close()
		if remove && f.uploaded && name != store.Manifest {
			errs = append(errs, d.bucket.remove(ctx, f.key()))
		}
	}
	return errors.Join(errs...)
}

// draftFile is an object on its way up.
type draftFile struct {
	draft    *draft
	name     string
	spool    *os.File
	size     int64
	closed   bool
	uploaded bool // or begun to
}

func (f *draftFile) key() string { return f.draft.id.String() + "/" + f.draft.folder + "/" + f.name }

// Write implements io.Writer.
func (f *draftFile) Write(p []byte) (int, error) {
	f.draft.mu.Lock()
	closed := f.closed
	f.draft.mu.Unlock()
	if closed {
		return 0, fail("writing", f.draft.id, f.name, fs.ErrClosed)
	}
	n, err := f.spool.Write(p)
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	f.size += int64(n)
	if err != nil && f.draft.broken == nil {
		f.draft.broken = err
	}
	return n, fail("writing", f.draft.id, f.name, err)
}

// ReadAt implements io.ReaderAt.
func (f *draftFile) ReadAt(p []byte, off int64) (int, error) { return f.spool.ReadAt(p, off) }

// Size implements store.File.
func (f *draftFile) Size() int64 {
	f.draft.mu.Lock()
	defer f.draft.mu.Unlock()
	return f.size
}

// Close sends the object up.
func (f *draftFile) Close() error {
	d := f.draft
	d.mu.Lock()
	if f.closed {
		d.mu.Unlock()
		return fail("closing", d.id, f.name, fs.ErrClosed)
	}
	f.closed, f.uploaded = true, true
	size := f.size
	d.mu.Unlock()
	if f.name == store.Manifest {
		return nil // Commit sends it
	}
	err := d.bucket.upload(d.ctx, f.key(), f.spool, size, compressed(f.name))
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.broken == nil {
			d.broken = err
		}
	}
	return fail("uploading", d.id, f.name, err)
}

// upload writes an object and checks what the service says that it has got.
func (b *Bucket) upload(ctx context.Context, key string, src io.ReaderAt, size int64, pack bool) error {
	return b.try(ctx, size, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // a writer that is closed under a dead context writes nothing
		o := &blob.WriterOptions{ContentType: "application/octet-stream"}
		if pack {
			o.ContentType, o.Metadata = "application/zstd", map[string]string{sizeField: strconv.FormatInt(size, 10)}
		}
		w, err := b.blobs.NewWriter(ctx, key, o)
		if err != nil {
			return err
		}
		sum := &summed{w: w, hash: md5.New()}
		if pack {
			err = writeSeekable(ctx, sum, src, size)
		} else {
			_, err = io.Copy(sum, io.NewSectionReader(src, 0, size))
		}
		if err != nil {
			cancel()
		}
		if err := errors.Join(err, w.Close()); err != nil {
			return err
		}
		attrs, err := b.blobs.Attributes(ctx, key)
		if err != nil {
			return err
		}
		if attrs.Size != sum.size || len(attrs.MD5) > 0 && string(attrs.MD5) != string(sum.hash.Sum(nil)) {
			return fmt.Errorf("of %d bytes that went up %d arrived, or others", sum.size, attrs.Size)
		}
		return nil
	})
}

// Sweep deletes what drafts left that were given up before a time: objects of no
// published snapshot, and leases that have run out. It returns how many bytes it
// freed.
func (b *Bucket) Sweep(ctx context.Context, before time.Time) (int64, error) {
	var freed int64
	folders := map[uuid.UUID]string{}
	err := b.each(ctx, "", func(o *blob.ListObject) error {
		if !o.ModTime.Before(before) {
			return nil
		}
		garbage, err := b.garbage(ctx, o.Key, folders)
		if err != nil || !garbage {
			return err
		}
		if err := b.remove(ctx, o.Key); err != nil {
			return err
		}
		freed += o.Size
		return nil
	})
	if err != nil {
		err = fmt.Errorf("sweeping the store: %w", err)
	}
	return freed, err
}
