// Package bucket is a store in an object storage bucket: gs:// or s3://.
//
// Below the URL's prefix:
//
//	<id>/metadata.json         the manifest: its conditional put publishes the
//	                           snapshot; its object metadata names the folder
//	<id>/<folder>/<artifact>   the other objects of the draft that was published, and
//	                           attachments
//	.names/<name>              holds the id ("/" is kept as "+")
//	.pins/<id>/<lease>         holds the time until which the pin counts
//	.removing/<id>             holds the time until which a removal may go on
//
// Data files are compressed in the zstd seekable format, see seekable.go; the
// contract's bytes are what they expand to. Pins are leases, because nobody tells
// a bucket that a process died: their holders renew them, and the clocks of all
// who use a bucket must agree to some minutes.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/gcsblob" // gs://
	_ "gocloud.dev/blob/s3blob"  // s3://
	"gocloud.dev/gcerrors"

	"github.com/sporevm/spore/internal/store"
)

// Options change how a Bucket works. Zero values mean the defaults.
type Options struct {
	TempDir  string        // for objects on their way up; os.TempDir()
	Attempts int           // of one request; 5
	Timeout  time.Duration // of one attempt at a small request; 30 s
	Backoff  time.Duration // before the second attempt, then doubled; 100 ms
	Lease    time.Duration // of a pin that is not renewed; 10 min
}

func (o Options) withDefaults() Options {
	if o.TempDir == "" {
		o.TempDir = os.TempDir()
	}
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Backoff == 0 {
		o.Backoff = 100 * time.Millisecond
	}
	if o.Lease == 0 {
		o.Lease = 10 * time.Minute
	}
	return o
}

// Bucket is a store in a bucket. It serves many goroutines, and many processes on
// many machines may use one bucket.
type Bucket struct {
	url     string
	blobs   *blob.Bucket
	options Options
	folders sync.Map // uuid.UUID → string: where published data lies, as last seen
}

var _ store.Store = (*Bucket)(nil)

// IsURL tells whether a store's location names a bucket rather than a folder.
func IsURL(location string) bool { return strings.Contains(location, "://") }

// Open opens the store at a URL: gs://bucket/prefix or s3://bucket/prefix, with the
// parameters that gocloud.dev/blob knows (s3: region, endpoint, use_path_style,
// disable_https, …). Credentials are found the way of each service's own tools.
func Open(ctx context.Context, location string, o Options) (*Bucket, error) {
	u, err := url.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %q is not a URL: %w", location, ErrLocation)
	}
	if (u.Scheme != "gs" && u.Scheme != "s3") || u.Host == "" {
		return nil, fmt.Errorf("opening the store %s: %w", u.Redacted(), ErrLocation)
	}
	prefix := strings.Trim(u.Path, "/")
	if strings.Contains("/"+prefix+"/", "/../") || strings.Contains(prefix, "//") {
		return nil, fmt.Errorf("opening the store %s: its prefix has empty or dot-dot parts: %w", u.Redacted(), ErrLocation)
	}
	name := u.Scheme + "://" + u.Host + "/" + prefix
	u.Path = ""
	blobs, err := blob.OpenBucket(ctx, u.String())
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", name, explain(err))
	}
	if prefix != "" {
		blobs = blob.PrefixedBucket(blobs, prefix+"/")
	}
	return &Bucket{url: name, blobs: blobs, options: o.withDefaults()}, nil
}

// Close gives up the connections.
func (b *Bucket) Close() error { return b.blobs.Close() }

// String is the bucket's URL, without parameters.
func (b *Bucket) String() string { return b.url }

// try makes a request, again while it fails in a way that may pass. size is what
// it moves, in bytes.
func (b *Bucket) try(ctx context.Context, size int64, request func(ctx context.Context) error) error {
	const slowest = 256 << 10 // bytes a second that an attempt must keep up
	limit := b.options.Timeout + time.Duration(size/slowest)*time.Second
	wait := b.options.Backoff
	for attempt := 1; ; attempt++ {
		err := b.attempt(ctx, limit, request)
		switch {
		case err == nil || !transient(err) && ctx.Err() == nil:
			return explain(err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case attempt == b.options.Attempts:
			return explain(fmt.Errorf("%w (%d attempts)", err, attempt))
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait *= 2
	}
}

func (b *Bucket) attempt(ctx context.Context, limit time.Duration, request func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return request(ctx)
}

// transient tells whether a request may do better another time.
func transient(err error) bool {
	switch gcerrors.Code(err) {
	case gcerrors.NotFound, gcerrors.AlreadyExists, gcerrors.FailedPrecondition, gcerrors.PermissionDenied, gcerrors.InvalidArgument, gcerrors.Unimplemented:
		return false
	}
	return true
}

func notFound(err error) bool { return gcerrors.Code(err) == gcerrors.NotFound }

// attributes of an object; nil when it is not there.
func (b *Bucket) attributes(ctx context.Context, key string) (attrs *blob.Attributes, err error) {
	err = b.try(ctx, 0, func(ctx context.Context) error {
		attrs, err = b.blobs.Attributes(ctx, key)
		return err
	})
	if notFound(err) {
		return nil, nil
	}
	return attrs, err
}

// readRange fills p from offset off of an object.
func (b *Bucket) readRange(ctx context.Context, key string, p []byte, off int64) error {
	return b.try(ctx, int64(len(p)), func(ctx context.Context) error {
		r, err := b.blobs.NewRangeReader(ctx, key, off, int64(len(p)), nil)
		if err != nil {
			return err
		}
		_, err = io.ReadFull(r, p)
		return errors.Join(err, r.Close())
	})
}

// readSmall reads an object of at most limit bytes; nil when it is not there.
func (b *Bucket) readSmall(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = b.try(ctx, limit, func(ctx context.Context) error {
		r, err := b.blobs.NewReader(ctx, key, nil)
		if err != nil {
			return err
		}
		defer r.Close()
		if r.Size() > limit {
			return fmt.Errorf("it has %d bytes, at most %d are allowed", r.Size(), limit)
		}
		data, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err == nil && int64(len(data)) != r.Size() {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	if notFound(err) {
		return nil, nil
	}
	return data, err
}

// put writes a small object.
func (b *Bucket) put(ctx context.Context, key string, data []byte, o *blob.WriterOptions) error {
	return b.try(ctx, int64(len(data)), func(ctx context.Context) error { return b.blobs.WriteAll(ctx, key, data, o) })
}

// remove deletes an object; one that is not there is deleted already.
func (b *Bucket) remove(ctx context.Context, key string) error {
	err := b.try(ctx, 0, func(ctx context.Context) error { return b.blobs.Delete(ctx, key) })
	if notFound(err) {
		return nil
	}
	return err
}

// each calls use for every object whose key starts with prefix.
func (b *Bucket) each(ctx context.Context, prefix string, use func(o *blob.ListObject) error) error {
	token := blob.FirstPageToken
	for len(token) > 0 {
		var page []*blob.ListObject
		var next []byte
		err := b.try(ctx, 0, func(ctx context.Context) (err error) {
			page, next, err = b.blobs.ListPage(ctx, token, 1000, &blob.ListOptions{Prefix: prefix})
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range page {
			if err := use(o); err != nil {
				return err
			}
		}
		token = next
	}
	return nil
}

// fail wraps err, nil for nil.
func fail(op string, id uuid.UUID, artifact string, err error) error {
	if err == nil {
		return nil
	}
	return &store.Error{Op: op, ID: id, Artifact: artifact, Err: err}
}

func manifestKey(id uuid.UUID) string { return id.String() + "/" + store.Manifest }
