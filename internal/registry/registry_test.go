package registry_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ocireg "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/registry"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

const page = 4096

func newRepo(t testing.TB, options ...snapshot.Option) *snapshot.Repo {
	t.Helper()
	dir := t.TempDir()
	st, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, filepath.Join(dir, "cache"), options...)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func add(t testing.TB, repo *snapshot.Repo, parent *snapshot.Snapshot, seed byte) *snapshot.Snapshot {
	t.Helper()
	d, err := repo.NewDraft(t.Context(), uuid.New(), parent)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	disk, err := d.Disk(64 * page)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Write(int64(seed)*page, bytes.Repeat([]byte{seed, seed + 1}, 10*page)); err != nil {
		t.Fatal(err)
	}
	if err := d.State([]byte("state")); err != nil {
		t.Fatal(err)
	}
	memory, err := d.Memory(64 * page)
	if err != nil {
		t.Fatal(err)
	}
	if err := memory.Write(int64(seed)*page, bytes.Repeat([]byte{seed}, 3*page)); err != nil {
		t.Fatal(err)
	}
	s, err := d.Commit(t.Context(), snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64", VCPUs: 1, Engine: snapshot.Engine{Name: "qemu", Version: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// service is a registry; alter may change what it answers. It counts uploads.
func service(t testing.TB, alter func(path string, body []byte) []byte) (host string, uploads *atomic.Int64) {
	t.Helper()
	uploads = new(atomic.Int64)
	inner := ocireg.New(ocireg.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			uploads.Add(1)
		}
		if alter == nil || r.Method != http.MethodGet {
			inner.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		body := alter(r.URL.Path, rec.Body.Bytes())
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(rec.Code)
		w.Write(body)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), uploads
}

func TestPushPull(t *testing.T) {
	host, uploads := service(t, nil)
	from, to := newRepo(t), newRepo(t)
	first := add(t, from, nil, 1)
	second := add(t, from, first, 5)
	touched := snapshot.Pages{{First: 6, Count: 2}, {First: 1, Count: 1}}
	if err := from.SetPrefetch(t.Context(), second.ID(), touched); err != nil {
		t.Fatal(err)
	}
	ref := host + "/machines/web:v1"
	var done, total int64
	digest, err := registry.Push(t.Context(), from, second.ID(), ref, registry.Options{}, func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	if done != total || total == 0 {
		t.Errorf("%d of %d bytes", done, total)
	}
	before := uploads.Load()
	again, err := registry.Push(t.Context(), from, second.ID(), ref, registry.Options{}, nil)
	if err != nil || again != digest || uploads.Load() != before {
		t.Errorf("pushed again: %s, then %s, %d more uploads, %v", digest, again, uploads.Load()-before, err)
	}
	for i, ref := range []string{host + "/machines/web@" + digest, ref} {
		p, err := registry.Pull(t.Context(), to, ref, registry.Options{}, func(d, n int64) { done, total = d, n })
		if err != nil {
			t.Fatal(err)
		}
		if done != total || p.ID != second.ID() || p.Digest != digest {
			t.Errorf("%d of %d bytes, %+v", done, total, p)
		}
		if want := []int{2, 0}[i]; len(p.Copied) != want || len(p.Present) != 2-want {
			t.Errorf("pull %d: %+v", i, p)
		}
	}
	got, err := to.OpenID(t.Context(), second.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if err := to.Verify(t.Context(), got, nil); err != nil || got.Digest() != second.Digest() {
		t.Errorf("another snapshot came: %v", err)
	}
	if got, err := to.Prefetch(t.Context(), second.ID()); err != nil || !slices.Equal(got, touched) {
		t.Errorf("the prefetch list is %v, %v", got, err)
	}
}

// TestPullTrusts publishes nothing, of an ancestor neither, of what no trusted key has signed.
func TestPullTrusts(t *testing.T) {
	host, _ := service(t, nil)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from, to := newRepo(t), newRepo(t, snapshot.Trust([]ed25519.PublicKey{public}))
	last := add(t, from, add(t, from, nil, 1), 5)
	ref := host + "/machines/web:v1"
	for _, signed := range []bool{false, true} {
		if signed {
			if err := from.Sign(t.Context(), last, private); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := registry.Push(t.Context(), from, last.ID(), ref, registry.Options{}, nil); err != nil {
			t.Fatal(err)
		}
		var done, total int64
		p, err := registry.Pull(t.Context(), to, ref, registry.Options{}, func(d, n int64) { done, total = d, n })
		var untrusted *snapshot.UntrustedError
		switch {
		case !signed && (!errors.As(err, &untrusted) || len(p.Copied) > 0):
			t.Errorf("unsigned: copied %v, %v", p.Copied, err)
		case signed && (err != nil || len(p.Copied) != 2 || done != total):
			t.Errorf("signed: copied %v, %d of %d bytes, %v", p.Copied, done, total, err)
		}
	}
	got, err := to.OpenID(t.Context(), last.ID())
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

func TestPullRefuses(t *testing.T) {
	pull := func(t *testing.T, ref string) error {
		t.Helper()
		to := newRepo(t)
		_, err := registry.Pull(t.Context(), to, ref, registry.Options{}, nil)
		infos, list := to.List(t.Context(), nil)
		if list != nil || len(infos) > 0 && err != nil && len(infos) > 1 {
			t.Errorf("published %d, %v", len(infos), list)
		}
		return err
	}
	t.Run("an image", func(t *testing.T) {
		host, _ := service(t, nil)
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host + "/an/image:v1")
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		if err := pull(t, ref.String()); !errors.Is(err, registry.ErrForeign) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		host, _ := service(t, nil)
		if err := pull(t, host+"/no/such:thing"); err == nil {
			t.Error("pulled")
		}
		if err := pull(t, "NO REFERENCE"); !errors.Is(err, image.ErrReference) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("altered blobs", func(t *testing.T) {
		var at atomic.Int64
		at.Store(-1)
		n := atomic.Int64{}
		host, _ := service(t, func(path string, body []byte) []byte {
			if !strings.Contains(path, "/blobs/") || len(body) == 0 || n.Add(1)-1 != at.Load() {
				return body
			}
			body = bytes.Clone(body)
			body[len(body)/2] ^= 1
			return body
		})
		from := newRepo(t)
		s := add(t, from, nil, 1)
		ref := host + "/machines/web:v1"
		if _, err := registry.Push(t.Context(), from, s.ID(), ref, registry.Options{}, nil); err != nil {
			t.Fatal(err)
		}
		for i := range int64(7) { // config, metadata, and five files
			at.Store(i)
			n.Store(0)
			if err := pull(t, ref); err == nil {
				t.Errorf("with blob %d altered it was pulled", i)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"` + registry.ArtifactType + `","config":{"mediaType":"` + registry.ArtifactType +
		`","size":3,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[{"mediaType":"application/vnd.spore.metadata.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","annotations":{"org.opencontainers.image.title":"aaaa0000-2222-4222-8222-222222222222/metadata.json"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := registry.ParseManifest(data); err != nil && !errors.Is(err, registry.ErrForeign) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
