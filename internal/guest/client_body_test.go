package guest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"
)

// pieces is a body that comes in pieces of any size, and counts its readers.
type pieces struct {
	rnd   *rand.Rand
	data  []byte
	reads int
	end   error
}

func (p *pieces) Read(b []byte) (int, error) {
	p.reads++
	if len(p.data) == 0 {
		return 0, p.end
	}
	n := copy(b[:min(len(b), 1+p.rnd.IntN(300_000))], p.data)
	p.data = p.data[n:]
	return n, nil
}

func (p *pieces) Close() error { return nil }

func TestBodyInSmallReads(t *testing.T) {
	data := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	torn := errors.New("torn")
	for _, end := range []error{io.EOF, torn} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r },
			"small": func(r io.Reader) io.Reader { return onlyReader{iotest.HalfReader(r)} },
		} {
			src := &pieces{rnd: rand.New(rand.NewPCG(1, 2)), data: data, end: end}
			body := &bulkBody{body: src}
			var got bytes.Buffer
			_, err := io.Copy(&got, wrap(body))
			if end == io.EOF && err != nil || end == torn && err != torn {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%s: %d bytes, or others", name, got.Len())
			}
			if src.reads > 100 {
				t.Errorf("%s: %d reads of the body", name, src.reads)
			}
			body.Close()
		}
	}
}

func TestBodyDoesNotWaitForMore(t *testing.T) {
	r, w := io.Pipe()
	body := &bulkBody{body: r}
	go w.Write([]byte("piece"))
	got := make([]byte, 100)
	if n, err := body.Read(got); string(got[:n]) != "piece" || err != nil {
		t.Errorf("%q, %v", got[:n], err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := body.Read(got)
		done <- err
	}()
	body.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a read of a closed body succeeded")
		}
	case <-time.After(patience):
		t.Error("Close did not end the read")
	}
}
