package builds

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// archive makes a tar archive of entries; their content is their name.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, h.Name)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpack(t *testing.T) {
	good := archive(t, tar.Header{Name: "app/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "app/run", Mode: 0o4755}, tar.Header{Name: "deep/er/file"},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, tar.Header{Name: "same", Typeflag: tar.TypeLink, Linkname: "app/run"})
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(good)
	z.Close()
	for what, data := range map[string][]byte{"plain": good, "gzip": zipped.Bytes()} {
		dir := t.TempDir()
		if err := unpack(dir, bytes.NewReader(data)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		info, err := os.Stat(filepath.Join(dir, "app/run"))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v %v", what, info.Mode(), err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "deep/er/file")); err != nil || string(got) != "deep/er/file" {
			t.Errorf("%s: %q %v", what, got, err)
		}
	}
}

func TestNothingIsUnpackedElsewhere(t *testing.T) {
	outside := t.TempDir()
	for what, entries := range map[string][]tar.Header{
		"dots":           {{Name: "../escaped"}},
		"dots within":    {{Name: "a/../../escaped"}},
		"absolute":       {{Name: "/escaped"}},
		"behind a link":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/escaped"}},
		"over a link":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(outside, "escaped")}, {Name: "l"}},
		"to the outside": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../../../../etc/passwd"}},
		"a device":       {{Name: "d", Typeflag: tar.TypeChar}},
		"a pipe":         {{Name: "p", Typeflag: tar.TypeFifo}},
		"twice":          {{Name: "a"}, {Name: "a"}},
	} {
		dir := t.TempDir()
		if err := unpack(dir, bytes.NewReader(archive(t, entries...))); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", what, err)
		}
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Fatalf("%s: %v", what, left)
		}
	}
}

func TestSourcesOfACopy(t *testing.T) {
	dir := t.TempDir()
	err := unpack(dir, bytes.NewReader(archive(t, tar.Header{Name: "a/one.txt"}, tar.Header{Name: "a/two.txt"},
		tar.Header{Name: "secret", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, tar.Header{Name: "etc", Typeflag: tar.TypeSymlink, Linkname: "/etc"})))
	if err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{"a": "a", "./a/": "a", ".": ".", "a/one.txt": "a/one.txt", "a/*.txt": "a/one.txt a/two.txt"} {
		found, err := find(dir, source)
		var names []string
		for _, f := range found {
			rel, _ := filepath.Rel(dir, f)
			names = append(names, rel)
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%s: %v %v", source, names, err)
		}
	}
	for _, source := range []string{"..", "../x", "a/../../x", "secret", "etc/passwd", "etc/pass*", "none", "n*", "["} {
		if found, err := find(dir, source); err == nil {
			t.Errorf("%s: %v", source, found)
		}
	}
}

func TestLinksAreForOneThing(t *testing.T) {
	b, err := New(Options{Dir: filepath.Join(t.TempDir(), "files")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	link := b.Link("alice", "hash")
	for _, bad := range []string{"", "x", link + "0", strings.Replace(link, link[:4], "0000", 1), strings.Replace(link, ".", ".9", 1)} {
		if err := b.Receive(bad, bytes.NewReader(archive(t, tar.Header{Name: "a"}))); fleet.KindOf(err) != fleet.NotFound {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := b.Receive(link, strings.NewReader("no archive, but long enough to be taken for one"+strings.Repeat("x", 1024))); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("%v", err)
	}
	if b.Present("alice", "hash") {
		t.Error("half an archive is there")
	}
	if err := b.Receive(link, bytes.NewReader(archive(t, tar.Header{Name: "a"}))); err != nil {
		t.Fatal(err)
	}
	if !b.Present("alice", "hash") || b.Present("bob", "hash") || b.Present("alice", "other") {
		t.Error("it is not there, or for others too")
	}
	if left, err := os.ReadDir(b.o.Dir); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "a/b"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}))
	f.Add(archive(f, tar.Header{Name: "../a"}))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		unpack(dir, bytes.NewReader(data))
		if all, _ := os.ReadDir(parent); len(all) != 1 {
			t.Fatalf("it reached beyond: %v", all)
		}
	})
}
