package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	inmemory "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// server is a registry on a loopback port; wrap changes what it answers.
func server(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := inmemory.New(inmemory.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// imageOf makes an image for arch of gzip layers.
func imageOf(t testing.TB, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch,
		Config: v1.Config{
			Entrypoint:   []string{"/bin/tool"},
			Cmd:          []string{"serve", arch},
			Env:          []string{"A=b"},
			WorkingDir:   "/work",
			User:         "app:staff",
			Labels:       map[string]string{"l": "v"},
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// twoLayers are a lower layer and one that changes it.
func twoLayers(t testing.TB) [][]byte {
	return [][]byte{
		pack(t, &tar.Header{Name: "etc/", Typeflag: tar.TypeDir}, &tar.Header{Name: "etc/gone", Uname: "1"}, &tar.Header{Name: "etc/kept", Uname: "2"}),
		pack(t, &tar.Header{Name: "etc/.wh.gone"}, &tar.Header{Name: "etc/new", Uname: "3"}),
	}
}

func push(t testing.TB, ref string, img remote.Taggable, o ...remote.Option) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch img := img.(type) {
	case v1.Image:
		err = remote.Write(r, img, o...)
	case v1.ImageIndex:
		err = remote.WriteIndex(r, img, o...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func names(all map[string]entry) []string {
	var list []string
	for n := range all {
		list = append(list, n)
	}
	return sorted(list)
}

func TestRegistry(t *testing.T) {
	needRoot(t)
	host := server(t, nil)
	img := imageOf(t, "amd64", twoLayers(t)...)
	push(t, host+"/some/app:v1", img)

	b := builder(t, Options{})
	p := Platform{Arch: "amd64"}
	got, err := b.Resolve(context.Background(), host+"/some/app:v1", p)
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	want := &Image{
		Ref: host + "/some/app:v1", Digest: digest.String(), Platform: Platform{OS: "linux", Arch: "amd64"},
		Config: Config{
			Entrypoint: []string{"/bin/tool"}, Cmd: []string{"serve", "amd64"}, Env: []string{"A=b"}, WorkingDir: "/work",
			User: "app:staff", Labels: map[string]string{"l": "v"}, ExposedPorts: []string{"443/tcp", "80/tcp"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "layers" }, cmp.Ignore())); diff != "" {
		t.Error(diff)
	}
	phases := map[Phase]int64{}
	path, err := b.Ext4(context.Background(), got, func(phase Phase, done, total int64) {
		if total >= 0 && done > total {
			t.Errorf("%s: %d of %d", phase, done, total)
		}
		phases[phase] = total - done
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[Phase]int64{PhasePull: 0, PhaseBuild: 0}, phases); diff != "" {
		t.Errorf("what was left to do in the end: %s", diff)
	}
	check(t, path)
	mountExt4(t, path, func(dir string) {
		if diff := cmp.Diff([]string{"", "etc", "etc/kept", "etc/new"}, names(lookAround(t, dir))); diff != "" {
			t.Error(diff)
		}
	})

	// By digest, and from nothing but what was written down of it.
	again, err := b.Resolve(context.Background(), host+"/some/app@"+digest.String(), p)
	if err != nil || again.Digest != got.Digest {
		t.Errorf("by digest: %v, %v", again, err)
	}
	fresh := builder(t, Options{})
	written := *got
	written.layers = nil
	path2, err := fresh.Ext4(context.Background(), &written, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !sameFile(t, path, path2) {
		t.Error("the same image came out as other bytes")
	}
}

func TestRegistryIndex(t *testing.T) {
	host := server(t, nil)
	layers := twoLayers(t)
	amd, arm := imageOf(t, "amd64", layers...), imageOf(t, "arm64", layers[:1]...)
	notes := imageOf(t, "", layers[:1]...)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: notes, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
	)
	push(t, host+"/multi", index)
	b := builder(t, Options{})
	for arch, img := range map[string]v1.Image{"amd64": amd, "arm64": arm} {
		want, _ := img.Digest()
		got, err := b.Resolve(context.Background(), host+"/multi", Platform{Arch: arch})
		if err != nil || got.Digest != want.String() || got.Config.Cmd[1] != arch {
			t.Errorf("%s: %v, %v", arch, got, err)
		}
	}
	var e *PlatformError
	_, err := b.Resolve(context.Background(), host+"/multi", Platform{Arch: "riscv64"})
	if !errors.As(err, &e) || !cmp.Equal(e.Have, []string{"linux/amd64", "linux/arm64/v8"}) {
		t.Errorf("%v", err)
	}
	push(t, host+"/single", arm)
	_, err = b.Resolve(context.Background(), host+"/single", Platform{Arch: "amd64"})
	if !errors.As(err, &e) || !cmp.Equal(e.Have, []string{"linux/arm64"}) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(err.Error(), host+"/single") || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("unclear: %v", err)
	}
}

func TestRegistryMissing(t *testing.T) {
	host := server(t, nil)
	push(t, host+"/there:v1", imageOf(t, "amd64"))
	b := builder(t, Options{})
	for _, ref := range []string{host + "/nowhere", host + "/there:v2", host + "/there@sha256:" + strings.Repeat("0", 64)} {
		_, err := b.Resolve(context.Background(), ref, Platform{})
		var e *Error
		if !errors.Is(err, ErrNotFound) || !errors.As(err, &e) || e.Image != ref {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER/case", "a b", "x@sha256:12"} {
		if _, err := b.Resolve(context.Background(), ref, Platform{}); !errors.Is(err, ErrReference) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestRegistryCredentials(t *testing.T) {
	const user, password = "someone", "secret"
	host := server(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	push(t, host+"/private", imageOf(t, "amd64", twoLayers(t)...), remote.WithAuth(&authn.Basic{Username: user, Password: password}))

	home := t.TempDir()
	t.Setenv("DOCKER_CONFIG", home)
	_, err := builder(t, Options{}).Resolve(context.Background(), host+"/private", Platform{Arch: "amd64"})
	var e *Error
	if !errors.Is(err, ErrAuth) || !errors.As(err, &e) || !strings.Contains(e.Hint, "docker login "+host) {
		t.Fatalf("without credentials: %v", err)
	}
	config := `{"auths":{"` + host + `":{"auth":"c29tZW9uZTpzZWNyZXQ="}}}`
	if err := os.WriteFile(home+"/config.json", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	img, err := b.Resolve(context.Background(), host+"/private", Platform{Arch: "amd64"})
	if err != nil {
		t.Fatalf("with credentials: %v", err)
	}
	if _, err := b.Ext4(context.Background(), img, nil); err != nil {
		t.Fatalf("with credentials: %v", err)
	}
}

// corrupting changes a registry's answers to requests for part.
func corrupting(part *string, change func([]byte) []byte) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if *part == "" || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, *part) {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			body := change(rec.Body.Bytes())
			for k, v := range rec.Header() {
				if k != "Content-Length" {
					w.Header()[k] = v
				}
			}
			w.WriteHeader(rec.Code)
			w.Write(body)
		})
	}
}

func TestRegistryCorrupts(t *testing.T) {
	flip := func(p []byte) []byte { q := bytes.Clone(p); q[len(q)/2] ^= 1; return q }
	changes := map[string]func([]byte) []byte{
		"flipped":   flip,
		"truncated": func(p []byte) []byte { return p[:len(p)/2] },
		"longer":    func(p []byte) []byte { return append(bytes.Clone(p), "more"...) },
		"empty":     func([]byte) []byte { return nil },
		"other":     func([]byte) []byte { return []byte("not at all what was asked for") },
	}
	img := imageOf(t, "amd64", twoLayers(t)...)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	parts := map[string]string{
		"layer":    m.Layers[1].Digest.String(),
		"config":   m.Config.Digest.String(),
		"manifest": "/manifests/",
	}
	for what, path := range parts {
		for how, change := range changes {
			t.Run(what+" "+how, func(t *testing.T) {
				var part string
				host := server(t, corrupting(&part, change))
				push(t, host+"/app:v1", img)
				part = path
				b := builder(t, Options{})
				got, err := b.Resolve(context.Background(), host+"/app@"+digest.String(), Platform{Arch: "amd64"})
				if err == nil {
					_, err = b.Ext4(context.Background(), got, nil)
				}
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("not noticed: %v", err)
				}
				var d *DigestError
				if !errors.As(err, &d) {
					t.Errorf("not said to be the digest: %v", err)
				}
				left, _ := os.ReadDir(b.cache.dir + "/ext4")
				if len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}

// TestRegistryBreaksOff has connections end in the middle of layers: those are
// asked for again, and the progress comes out right all the same.
func TestRegistryBreaksOff(t *testing.T) {
	var layers [][]byte
	for i := range 6 {
		layers = append(layers, pack(t, &tar.Header{Name: strings.Repeat("f", i+1), Uname: strings.Repeat(string(rune('a'+i)), 1000+i)}))
	}
	img := imageOf(t, "amd64", layers...)
	var mu sync.Mutex
	broken := map[string]int{}
	most := 2
	host := server(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			armed := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") && most > 0
			if armed {
				broken[r.URL.Path]++
				armed = broken[r.URL.Path] <= most && broken[r.URL.Path] > 0
			}
			mu.Unlock()
			if !armed {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
	})
	push(t, host+"/app", img)
	m, _ := img.Manifest()
	broken["/v2/app/blobs/"+m.Config.Digest.String()] = -1 << 30
	b := builder(t, Options{})
	got, err := b.Resolve(context.Background(), host+"/app", Platform{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	var last, total int64
	path, err := b.Ext4(context.Background(), got, func(phase Phase, done, of int64) {
		if phase == PhasePull {
			last, total = done, of
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, path)
	if last != total || total == 0 {
		t.Errorf("%d of %d", last, total)
	}
	// Too often is too often.
	mu.Lock()
	clear(broken)
	broken["/v2/app/blobs/"+m.Config.Digest.String()] = -1 << 30
	most = 100
	mu.Unlock()
	b = builder(t, Options{})
	if _, err := b.Ext4(context.Background(), got, nil); err == nil {
		t.Error("no error")
	}
}

// TestLayerPromises checks what a manifest says of a layer that is, as such,
// just as it was stored.
func TestLayerPromises(t *testing.T) {
	raw := pack(t, &tar.Header{Name: "f", Uname: "1"})
	for name, change := range map[string]func(*layer){
		"digest": func(l *layer) { l.digest = digestBytes(nil) },
		"diffID": func(l *layer) { l.diffID = digestBytes(nil) },
		"longer": func(l *layer) { l.size++ },
		"size":   func(l *layer) { l.size-- },
	} {
		img := stack(true, raw)
		change(&img.layers[0])
		b := builder(t, Options{})
		_, err := b.Ext4(context.Background(), img, nil)
		var e *DigestError
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlainHTTPOnlyOnLoopback(t *testing.T) {
	var asked []string
	deny := roundTripper(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.String())
		return nil, errors.New("no network here")
	})
	for _, ref := range []string{"10.1.2.3:5000/app", "192.168.0.1/app", "registry.local/app"} {
		b := builder(t, Options{Transport: deny})
		if _, err := b.Resolve(context.Background(), ref, Platform{}); err == nil {
			t.Errorf("%s: no error", ref)
		}
	}
	for _, url := range asked {
		if strings.HasPrefix(url, "http:") {
			t.Errorf("asked in the clear: %s", url)
		}
	}
	asked = nil
	b := builder(t, Options{Transport: deny, PlainHTTP: []string{"10.1.2.3:5000"}})
	b.Resolve(context.Background(), "10.1.2.3:5000/app", Platform{})
	if !strings.Contains(strings.Join(asked, " "), "http://10.1.2.3:5000/") {
		t.Errorf("allowed, but not asked: %q", asked)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNotAContainerImage(t *testing.T) {
	host := server(t, nil)
	img, err := mutate.Append(imageOf(t, "amd64"), mutate.Addendum{Layer: static.NewLayer([]byte("{}"), types.MediaType("application/vnd.other+json"))})
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/chart", img)
	_, err = builder(t, Options{}).Resolve(context.Background(), host+"/chart", Platform{Arch: "amd64"})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v", err)
	}
}
