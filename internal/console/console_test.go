package console

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

var page = fstest.MapFS{
	"README.md":               {Data: []byte("not for the world")},
	"index.html":              {Data: []byte(`<script type="module" src="assets/app-AAAAAAAA.js"></script>`)},
	"assets/app-AAAAAAAA.js":  {Data: bytes.Repeat([]byte("let a = 1;\n"), 500)},
	"assets/icon-BBBBBB.svg":  {Data: []byte("<svg/>")},
	"assets/style-CCCCCC.css": {Data: []byte("a{}")},
}

func ask(t *testing.T, h http.Handler, method, target string, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestServes(t *testing.T) {
	h := handler(page)
	for _, c := range []struct {
		path, kind, cache string
		status            int
	}{
		{"/", "text/html; charset=utf-8", "no-cache", 200},
		{"/index.html", "text/html; charset=utf-8", "no-cache", 200},
		{"/assets/app-AAAAAAAA.js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable", 200},
		{"/assets/style-CCCCCC.css", "text/css; charset=utf-8", "public, max-age=31536000, immutable", 200},
		{"/assets/icon-BBBBBB.svg", "image/svg+xml", "public, max-age=31536000, immutable", 200},
		{"/assets/app-ZZZZZZZZ.js", "text/plain; charset=utf-8", "no-store", 404},
		{"/assets/", "text/plain; charset=utf-8", "no-store", 404},
		{"/assets/../README.md", "text/plain; charset=utf-8", "no-store", 404},
		{"/README.md", "application/json", "", 404},
		{"/sandboxes", "application/json", "", 404},
	} {
		r := ask(t, h, "GET", "http://x"+c.path)
		if r.StatusCode != c.status || r.Header.Get("Content-Type") != c.kind || r.Header.Get("Cache-Control") != c.cache {
			t.Errorf("%s: %d, %q, %q", c.path, r.StatusCode, r.Header.Get("Content-Type"), r.Header.Get("Cache-Control"))
		}
		if r.Header.Get("Content-Security-Policy") != policy || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: not guarded: %v", c.path, r.Header)
		}
	}
	if r := ask(t, h, "POST", "http://x/"); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d", r.StatusCode)
	}
	if r := ask(t, h, "HEAD", "http://x/"); r.StatusCode != 200 || body(t, r) != "" {
		t.Errorf("HEAD: %d", r.StatusCode)
	}
}

func TestPolicyAllowsNothingForeign(t *testing.T) {
	if !strings.HasPrefix(policy, "default-src 'none';") {
		t.Error("what is not named must be forbidden")
	}
	for _, word := range []string{"unsafe", "http:", "https:", "data:", "*", "//"} {
		if strings.Contains(policy, word) {
			t.Errorf("the policy allows %s", word)
		}
	}
}

func TestRevalidates(t *testing.T) {
	h := handler(page)
	for _, encoding := range []string{"", "gzip"} {
		first := ask(t, h, "GET", "http://x/assets/app-AAAAAAAA.js", "Accept-Encoding", encoding)
		tag := first.Header.Get("ETag")
		if again := ask(t, h, "GET", "http://x/assets/app-AAAAAAAA.js", "Accept-Encoding", encoding, "If-None-Match", tag); again.StatusCode != 304 || body(t, again) != "" {
			t.Errorf("%q: with the tag %s: %d", encoding, tag, again.StatusCode)
		}
		if other := ask(t, h, "GET", "http://x/", "Accept-Encoding", encoding, "If-None-Match", tag); other.StatusCode != 200 {
			t.Errorf("%q: another file has the same tag", encoding)
		}
	}
}

func TestCompresses(t *testing.T) {
	h := handler(page)
	want := string(page["assets/app-AAAAAAAA.js"].Data)
	for header, packed := range map[string]bool{"gzip": true, "br, gzip;q=0.5": true, "*": true, "": false, "br": false, "gzip;q=0": false, "gzip;q=0.000": false, "gzip;q=x": false} {
		r := ask(t, h, "GET", "http://x/assets/app-AAAAAAAA.js", "Accept-Encoding", header)
		got := body(t, r)
		if r.Header.Get("Vary") != "Accept-Encoding" || (r.Header.Get("Content-Encoding") == "gzip") != packed {
			t.Errorf("%q: %v", header, r.Header)
		}
		if packed {
			z, err := gzip.NewReader(strings.NewReader(got))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) >= len(plain) {
				t.Errorf("%q: %d bytes became %d", header, len(plain), len(got))
			}
			got = string(plain)
		}
		if got != want {
			t.Errorf("%q: other content", header)
		}
	}
	if r := ask(t, h, "GET", "http://x/assets/icon-BBBBBB.svg", "Accept-Encoding", "gzip"); r.Header.Get("Content-Encoding") != "" {
		t.Error("what gets larger by it is compressed")
	}
}

func TestUnbuilt(t *testing.T) {
	h := handler(fstest.MapFS{"README.md": page["README.md"]})
	for _, path := range []string{"/", "/assets/app-AAAAAAAA.js"} {
		r := ask(t, h, "GET", "http://x"+path)
		if text := body(t, r); r.StatusCode != 503 || !strings.Contains(text, "make web") || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %q", path, r.StatusCode, text)
		}
	}
	if r := ask(t, h, "GET", "http://x/elsewhere"); r.StatusCode != 404 {
		t.Errorf("elsewhere: %d", r.StatusCode)
	}
}

// Whatever a client sends, it gets the page's files, guarded, or an error.
func FuzzServe(f *testing.F) {
	h := handler(page)
	f.Add("/", "gzip, br;q=0.1", "bytes=0-3", "")
	f.Add("/assets/../index.html", "gzip;q=", "bytes=-1,5-", `"x", W/"y"`)
	f.Fuzz(func(t *testing.T, path, encoding, span, tag string) {
		r := httptest.NewRequest("GET", "http://x/", nil)
		r.URL.Path = path
		r.Header.Set("Accept-Encoding", encoding)
		r.Header.Set("Range", span)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Result(); !slices.Contains([]int{200, 206, 304, 404, 416}, got.StatusCode) || got.Header.Get("Content-Security-Policy") != policy {
			t.Errorf("%d %v", got.StatusCode, got.Header)
		}
		if strings.Contains(w.Body.String(), "not for the world") {
			t.Error("a file that is none of the page's")
		}
	})
}

// dist is the bundle as it is embedded here.
func dist(t *testing.T) fs.FS {
	t.Helper()
	d, err := fs.Sub(built, "dist")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Stat(d, "index.html"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the console has not been built: `make web`")
	}
	return d
}

// Most bytes, before compression, of what loads with the page, and of the terminal emulator, which loads with the first terminal.
const (
	mostPage     = 120 << 10
	mostTerminal = 400 << 10
)

func TestStaysSmall(t *testing.T) {
	files, err := load(dist(t))
	if err != nil {
		t.Fatal(err)
	}
	var page, terminal int
	for name, f := range files {
		switch {
		case strings.HasSuffix(name, ".txt"): // licences, that no browser loads
		case strings.HasPrefix(name, "assets/xterm-"):
			terminal += len(f.content)
		default:
			page += len(f.content)
		}
	}
	t.Logf("page %d bytes, terminal %d", page, terminal)
	if page == 0 || page > mostPage {
		t.Errorf("the page has %d bytes, more than %d", page, mostPage)
	}
	if terminal == 0 || terminal > mostTerminal {
		t.Errorf("the terminal has %d bytes, more than %d", terminal, mostTerminal)
	}
}

// All that the page names is there, and nothing of it is anywhere else.
func TestIsWhole(t *testing.T) {
	h := handler(dist(t))
	text := body(t, ask(t, h, "GET", "http://x/"))
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(text, -1)
	if len(links) < 3 {
		t.Fatalf("the page names %v", links)
	}
	for _, l := range links {
		if !strings.HasPrefix(l[1], "assets/") {
			t.Errorf("the page names %s", l[1])
		}
		if r := ask(t, h, "GET", "http://x/"+l[1]); r.StatusCode != 200 {
			t.Errorf("%s: %d", l[1], r.StatusCode)
		}
	}
	if strings.Contains(text, "<style") || regexp.MustCompile(`<script[^>]*>[^<]`).MatchString(text) {
		t.Error("the page holds what its own policy forbids")
	}
}

func TestUnits(t *testing.T) {
	dist(t)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no node: `make deps`")
	}
	cmd := exec.CommandContext(t.Context(), node, "build.mjs", "--test")
	cmd.Dir = "web"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
