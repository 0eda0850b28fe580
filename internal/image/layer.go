package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sporevm/spore/internal/image/rootfs"
)

// layer is one archive of an image, wherever it is kept.
type layer struct {
	name      string // for messages
	digest    string // "sha256:<hex>" of the stored bytes; empty is not checked
	size      int64  // of the stored bytes; -1 where not known
	diffID    string // "sha256:<hex>" of the uncompressed bytes; empty is not checked
	whiteouts bool   // ".wh." names delete what lower layers have
	remote    bool   // comes over a network
	built     bool   // made just now by a tool: times of now mean nothing
	open      func(context.Context) (io.ReadCloser, error)
	finish    func(*rootfs.Tree) error // checks and evens out the tree that the layer makes; may be nil
}

// apply stacks the layer on tree. Every byte is read and counted into the
// digests, those after the end of the archive too.
func (l layer) apply(ctx context.Context, tree *rootfs.Tree, limits Limits, read func(n int64)) (err error) {
	stored, err := l.open(ctx)
	if err != nil {
		return fmt.Errorf("opening %s: %w", l.name, err)
	}
	defer func() {
		if cerr := stored.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("reading %s: %w", l.name, cerr)
		}
	}()
	in := &checked{r: &cancellable{ctx, stored}, what: l.name, want: l.digest, size: l.size, progress: read}
	plain, err := decompress(in)
	if err != nil {
		return fmt.Errorf("reading %s: %w", l.name, l.explain(ctx, in, err))
	}
	defer plain.Close()
	bounded := &bomb{r: plain, in: in, limits: limits}
	out := &checked{r: bounded, what: "uncompressed " + l.name, want: l.diffID, size: -1}
	if err := tree.Apply(ctx, out, rootfs.Layer{Whiteouts: l.whiteouts}); err != nil {
		return fmt.Errorf("unpacking %s: %w", l.name, l.explain(ctx, in, err))
	}
	for _, r := range []io.Reader{out, in} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return fmt.Errorf("reading %s: %w", l.name, l.explain(ctx, in, err))
		}
	}
	return nil
}

// explain looks whether what is wrong with a layer comes from its not being
// the one asked for: a wrong digest explains anything else.
func (l layer) explain(ctx context.Context, in *checked, err error) error {
	_, ours := errors.AsType[*os.PathError](err) // as from a full disk
	if l.digest == "" || ctx.Err() != nil || errors.Is(err, ErrLimit) || ours {
		return err
	}
	_, rest := io.Copy(io.Discard, in)
	if wrong, ok := errors.AsType[*DigestError](rest); ok {
		return wrong
	}
	return err
}

// cancellable stops reading when ctx ends.
type cancellable struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// checked fails, at the latest where its source ends, if that was not what
// size and digest promise.
type checked struct {
	r        io.Reader
	what     string
	want     string // empty is not checked
	size     int64  // -1 is not checked
	progress func(n int64)

	n   int64
	sum hash.Hash
}

func (c *checked) Read(p []byte) (int, error) {
	if c.sum == nil {
		c.sum = sha256.New()
	}
	n, err := c.r.Read(p)
	if n > 0 {
		c.n += int64(n)
		if c.want != "" {
			c.sum.Write(p[:n])
		}
		if c.progress != nil {
			c.progress(int64(n))
		}
	}
	if c.size >= 0 && c.n > c.size {
		return 0, &DigestError{c.what, fmt.Sprintf("%d bytes", c.size), "more"}
	}
	if errors.Is(err, io.EOF) {
		if c.size >= 0 && c.n < c.size {
			return 0, &DigestError{c.what, fmt.Sprintf("%d bytes", c.size), fmt.Sprint(c.n)}
		}
		if got := digestOf(c.sum); c.want != "" && got != c.want {
			return 0, &DigestError{c.what, c.want, got}
		}
	}
	return n, err
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func digestBytes(p []byte) string {
	h := sha256.New()
	h.Write(p)
	return digestOf(h)
}

// bomb fails when a layer unpacks to more than it has any right to.
type bomb struct {
	r      io.Reader
	in     *checked
	limits Limits
	n      int64
}

func (b *bomb) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > rootfs.RatioSlack && b.n/b.limits.Ratio > b.in.n {
		return 0, fmt.Errorf("%w: %d bytes unpack to more than %d times as many", ErrLimit, b.in.n, b.limits.Ratio)
	}
	// What is not files' bytes is headers, and padding at the end.
	if most := b.limits.Bytes + int64(b.limits.Entries)*4096 + 1<<20; b.n > most {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes", ErrLimit, most)
	}
	return n, err
}

var magics = []struct {
	prefix string
	open   func(io.Reader) (io.ReadCloser, error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.ReadCloser, error) {
		// A window is memory that a stranger asks for.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{"BZh", func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
	{"\xfd7zXZ\x00", func(io.Reader) (io.ReadCloser, error) {
		return nil, &hintError{fmt.Errorf("%w: xz compression", ErrUnsupported), "unpack it first: xz -d"}
	}},
}

// decompress looks at the first bytes of r and undoes the compression that
// they show, whatever a name or a media type says.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for _, m := range magics {
		if !bytes.HasPrefix(head, []byte(m.prefix)) {
			continue
		}
		plain, err := m.open(br)
		if err != nil {
			return nil, fmt.Errorf("decompressing: %w", err)
		}
		return plain, nil
	}
	return plainReader{br}, nil
}

// plainReader is what was not compressed at all.
type plainReader struct{ io.Reader }

func (plainReader) Close() error { return nil }

func isPlain(r io.Reader) bool {
	_, ok := r.(plainReader)
	return ok
}
