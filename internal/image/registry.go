package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registry is blobs in a repository of a registry.
type registry struct {
	repo   name.Repository
	puller *remote.Puller
}

func (r registry) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	ref := r.repo.Digest(d.Digest.String())
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		desc, err := r.puller.Get(ctx, ref)
		if err != nil {
			return nil, registryError(err, r.repo)
		}
		return io.NopCloser(strings.NewReader(string(desc.Manifest))), nil
	}
	l, err := r.puller.Layer(ctx, ref)
	if err != nil {
		return nil, registryError(err, r.repo)
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, registryError(err, r.repo)
	}
	return &download{body, r.repo}, nil
}

// download is a blob on its way; its errors are put in our words.
type download struct {
	io.ReadCloser
	repo name.Repository
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = registryError(err, d.repo)
	}
	return n, err
}

// mismatches are how the registry client, which has no type for it, says that
// bytes are not what their digest promised.
var mismatches = []*regexp.Regexp{
	regexp.MustCompile(`error verifying \w+ checksum .*got "(?P<got>[^"]+)", want "(?P<want>[^"]+)"`),
	regexp.MustCompile(`manifest digest: "(?P<got>[^"]+)" does not match requested digest: "(?P<want>[^"]+)"`),
}

func (b *Builder) resolveRegistry(ctx context.Context, s string, p Platform) (*Image, error) {
	var options []name.Option
	if host, _, _ := strings.Cut(s, "/"); slices.Contains(b.o.PlainHTTP, host) {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(s, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReference, err)
	}
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(b.o.Keychain),
		remote.WithTransport(SecureTransport(b.o.Transport, b.o.PlainHTTP)),
		remote.WithUserAgent("spore"),
	)
	if err != nil {
		return nil, err
	}
	from := registry{ref.Context(), puller}
	desc, err := puller.Get(ctx, ref)
	if err != nil {
		return nil, registryError(err, from.repo)
	}
	d := desc.Descriptor
	d.Data = desc.Manifest
	// By a tag, the registry alone says which digest is meant; the bytes it
	// sent with it must agree.
	if got := digestBytes(desc.Manifest); d.Digest.Algorithm == "sha256" && got != d.Digest.String() {
		return nil, &DigestError{"manifest", d.Digest.String(), got}
	}
	img, err := assemble(ctx, from, d, p)
	if err != nil {
		return nil, err
	}
	for i := range img.layers {
		img.layers[i].remote = true
	}
	return img, nil
}

// registryError says in our words what a registry answered.
func registryError(err error, repo name.Repository) error {
	terr, ok := errors.AsType[*transport.Error](err)
	if !ok {
		for _, re := range mismatches {
			if m := re.FindStringSubmatch(err.Error()); m != nil {
				return &DigestError{What: "what the registry sent", Got: m[1], Want: m[2]}
			}
		}
		return err
	}
	host := repo.RegistryStr()
	switch terr.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return &hintError{
			fmt.Errorf("%w, or it does not exist: %w", ErrAuth, err),
			"docker login " + host,
		}
	case http.StatusTooManyRequests:
		return &hintError{fmt.Errorf("the registry wants fewer requests: %w", err), "wait, or docker login " + host}
	}
	return err
}

// SecureTransport lets no request through that would go over a network in the
// clear, but to the registries ("host" or "host:port") in plain and on this host.
// nil for next is the default.
func SecureTransport(next http.RoundTripper, plain []string) http.RoundTripper {
	if next == nil {
		next = remote.DefaultTransport
	}
	return &guard{next, plain}
}

// guard lets no request through that would go over a network in the clear:
// neither one that a registry's name suggests nor one that it redirects to.
type guard struct {
	next  http.RoundTripper
	plain []string
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !loopback(r.URL.Hostname()) &&
		!slices.Contains(g.plain, r.URL.Host) && !slices.Contains(g.plain, r.URL.Hostname()) {
		return nil, fmt.Errorf("refusing to speak to %s without TLS", r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
