// Package console is the web page of a spore daemon: sandboxes, templates, the tree of snapshots, terminals, files.
//
// Its source is TypeScript in web, which `make web` bundles into dist; from there it is embedded. The page asks nothing of any other host, and this package
// knows nothing of the daemon: the page speaks to the API of the origin that it came from.
package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed dist
var built embed.FS

// policy lets the page load its own files and speak to its own origin, and nothing else. Images may also be blobs: files of sandboxes that are looked at.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

const unbuilt = "This spore was built without its web console. Run `make` (or `make web` and then `go build`) in its source, which needs node and npm, and start the new one.\n"

// Handler serves the page at / and its files below /assets/, and answers 404 for all else. If spore was built without them it answers 503, and says how to
// build them.
func Handler() http.Handler {
	dist, err := fs.Sub(built, "dist")
	if err != nil {
		panic(err) // the name is a constant, and valid
	}
	return handler(dist)
}

func handler(dist fs.FS) http.Handler {
	files, err := load(dist)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		name := strings.TrimPrefix(r.URL.Path, "/")
		if name == "" {
			name = index
		}
		f, ok := files[name]
		switch {
		case name != index && !strings.HasPrefix(name, "assets/"):
			notFound(w)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		case err != nil:
			h.Set("Cache-Control", "no-store")
			http.Error(w, unbuilt, http.StatusServiceUnavailable)
		case !ok:
			// An old page may ask for files that went with an old spore; nobody may remember the answer.
			h.Set("Cache-Control", "no-store")
			http.NotFound(w, r)
		default:
			f.serve(w, r)
		}
	})
}

// notFound answers as the API does: whoever asks for what is no part of the page is no browser, as a rule.
func notFound(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, `{"code":404,"message":"there is no such route (see /openapi.json)","hint":"see /openapi.json"}`+"\n")
}

const index = "index.html"

// file is one file of the page. Those below assets/ have a hash of their content in their names and never change.
type file struct {
	name    string
	content []byte
	etag    string
	packed  func() []byte // gzip; nil if that does not make it smaller
}

// load reads all files. The error is of fs.ErrNotExist if the page has not been built.
func load(dist fs.FS) (map[string]*file, error) {
	files := map[string]*file{}
	err := fs.WalkDir(dist, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || (name != index && !strings.HasPrefix(name, "assets/")) {
			return err
		}
		content, err := fs.ReadFile(dist, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		files[name] = &file{name: name, content: content, etag: hex.EncodeToString(sum[:12]), packed: sync.OnceValue(func() []byte { return pack(content) })}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the console: %w", err)
	}
	if files[index] == nil {
		return nil, fmt.Errorf("reading the console: %s: %w", index, fs.ErrNotExist)
	}
	return files, nil
}

// pack returns the content compressed, nil if that saves nothing.
func pack(content []byte) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is a constant, and valid
	}
	// Writing to memory does not fail.
	_, _ = z.Write(content)
	_ = z.Close()
	if b.Len() >= len(content) {
		return nil
	}
	return b.Bytes()
}

func (f *file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", contentType(f.name))
	h.Set("Vary", "Accept-Encoding")
	if f.name == index {
		h.Set("Cache-Control", "no-cache")
	} else {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	content, etag := f.content, f.etag
	// A range is of the plain content.
	if r.Header.Get("Range") == "" && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		if packed := f.packed(); packed != nil {
			h.Set("Content-Encoding", "gzip")
			content, etag = packed, etag+"-gzip"
		}
	}
	h.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// contentType does not ask the host's own table, which may say anything of .js.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	case ".txt":
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// acceptsGzip reads an Accept-Encoding header.
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err == nil && (name == "gzip" || name == "*") {
			q, err := strconv.ParseFloat(params["q"], 64)
			return params["q"] == "" || err == nil && q > 0
		}
	}
	return false
}
