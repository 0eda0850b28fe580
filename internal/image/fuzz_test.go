package image

import (
	"context"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// oneBlob gives the same answer to every question.
type oneBlob []byte

func (b oneBlob) open(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(b))), nil
}

// FuzzManifest reads anything as a manifest, an index or a config.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:00"},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:00","platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:00"]},"config":{"Env":["A=b"],"ExposedPorts":{"1/tcp":{}}}}`))
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := v1.NewHash(digestBytes(raw))
		if err != nil {
			t.Fatal(err)
		}
		p := Platform{OS: "linux", Arch: "amd64"}
		img, err := assemble(context.Background(), oneBlob(raw), v1.Descriptor{Digest: h}, p)
		if err == nil && img.Digest != h.String() {
			t.Errorf("%s is not %s", img.Digest, h)
		}
		configure(raw, p)
	})
}

// FuzzSources reads anything as the host's apt sources.
func FuzzSources(f *testing.F) {
	f.Add("deb [signed-by=/k] http://m/debian bookworm main contrib # more\n", "bookworm")
	f.Add("Types: deb deb-src\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n\n", "bookworm")
	f.Fuzz(func(t *testing.T, text, suite string) {
		for _, list := range [][]aptSource{stanzaSources(text), lineSources(text)} {
			for _, s := range list {
				if s.pick(suite) && !strings.Contains(s.String(), "Types: deb\n") {
					t.Errorf("%q", s.String())
				}
			}
		}
		parseInstalls(text, "amd64")
	})
}
