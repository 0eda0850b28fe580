package bench

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/store/storetest"
)

// far is a store in a service of objects.
func far(t *testing.T, url string) *bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(t.Context(), url, bucket.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestObjects holds the measurements' own object storage to the contract of stores.
func TestObjects(t *testing.T) {
	s := httptest.NewServer(newObjects())
	defer s.Close()
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		url := fmt.Sprintf("s3://far/%s?anonymous=true&region=far&use_path_style=true&endpoint=%s", uuid.NewString(), s.URL)
		return far(t, url), func() store.Store { return far(t, url) }
	})
}

// TestObjectsInParts uploads what is too large for one request, and counts what comes back, later.
func TestObjectsInParts(t *testing.T) {
	o := newObjects()
	s := httptest.NewServer(o)
	defer s.Close()
	b := far(t, "s3://far/x?anonymous=true&region=far&use_path_style=true&endpoint="+s.URL)
	data := make([]byte, 40<<20)
	rand.Read(data)
	id := uuid.New()
	storetest.Publish(t, b, id, map[string]string{"memfile": string(data)})
	f, err := b.Open(t.Context(), id, "memfile")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const delay = 30 * time.Millisecond
	o.delay.Store(int64(delay))
	before, begin := o.sent.Load(), time.Now()
	p := make([]byte, 64<<10)
	if _, err := f.ReadAt(p, 20<<20); err != nil || !bytes.Equal(p, data[20<<20:20<<20+len(p)]) {
		t.Errorf("read other bytes: %v", err)
	}
	if sent := o.sent.Load() - before; sent < 64<<10 || sent > 130<<10 {
		t.Errorf("%d bytes were sent for %d", sent, len(p))
	}
	if time.Since(begin) < delay {
		t.Error("the answer came at once")
	}
}

// TestChunkedBody reads what AWS's clients send in their own chunks.
func TestChunkedBody(t *testing.T) {
	for text, want := range map[string]string{
		"3;chunk-signature=x\r\nabc\r\n4\r\ndefg\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n": "abcdefg",
		"0\r\n\r\n": "",
	} {
		r := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(text))
		r.Header.Set("Content-Encoding", "aws-chunked")
		if got, err := body(r); err != nil || string(got) != want {
			t.Errorf("read %q, %v", got, err)
		}
	}
	for _, text := range []string{"", "zz\r\n", "5\r\nab"} {
		r := httptest.NewRequest(http.MethodPut, "/", io.NopCloser(strings.NewReader(text)))
		r.Header.Set("Content-Encoding", "aws-chunked")
		if got, err := body(r); err == nil {
			t.Errorf("read %q of %q", got, text)
		}
	}
}
