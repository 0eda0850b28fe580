package guest

import (
	"io"
	"sync"
)

// bodySize is how much of an answer is taken at once.
const bodySize = 512 << 10

var bodyBuffers = sync.Pool{New: func() any { b := make([]byte, bodySize); return &b }}

// bulkBody takes an answer's body in large pieces, however small those are in
// which it is read. Each piece taken is acknowledged to the guest, which costs an
// emulated guest as much as thousands of bytes; and nothing ever waits for a
// piece to fill.
type bulkBody struct {
	body io.ReadCloser

	mu     sync.Mutex // a Close may come while a Read waits
	buf    *[]byte
	rest   []byte // of buf
	err    error  // comes after rest
	closed bool
}

func (b *bulkBody) Read(p []byte) (int, error) {
	if n, err, done := b.take(p); done {
		return n, err
	}
	if len(p) >= bodySize {
		return b.body.Read(p)
	}
	buf := bodyBuffers.Get().(*[]byte)
	n, err := b.body.Read(*buf)
	b.mu.Lock()
	if b.closed && err == nil {
		err = io.ErrClosedPipe
	}
	if b.closed || n == 0 {
		bodyBuffers.Put(buf)
		b.err = err
		b.mu.Unlock()
		return 0, err
	}
	b.buf, b.rest, b.err = buf, (*buf)[:n], err
	b.mu.Unlock()
	n, err, _ = b.take(p)
	return n, err
}

// take gives out what is at hand. done: there was something, or the end.
func (b *bulkBody) take(p []byte) (n int, err error, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.rest) == 0 {
		return 0, b.err, b.err != nil || len(p) == 0
	}
	n = copy(p, b.rest)
	b.rest = b.rest[n:]
	if len(b.rest) == 0 {
		b.release()
	}
	return n, nil, true
}

// WriteTo spares io.Copy its own small buffer.
func (b *bulkBody) WriteTo(w io.Writer) (total int64, err error) {
	buf := bodyBuffers.Get().(*[]byte)
	defer bodyBuffers.Put(buf)
	for {
		n, err := b.Read(*buf)
		if n > 0 {
			m, werr := w.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (b *bulkBody) Close() error {
	b.mu.Lock()
	b.closed = true
	b.release()
	b.mu.Unlock()
	return b.body.Close()
}

func (b *bulkBody) release() {
	if b.buf != nil {
		bodyBuffers.Put(b.buf)
		b.buf, b.rest = nil, nil
	}
}
