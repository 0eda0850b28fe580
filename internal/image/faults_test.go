package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileArchives wants an error of the right kind that names image and
// entry, and nothing left behind.
func TestHostileArchives(t *testing.T) {
	dir := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeDir} }
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Uname: "x"} }
	sym := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	hard := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
	}
	chain := func(n int) []*tar.Header {
		list := []*tar.Header{dir("l0")}
		for i := 1; i <= n; i++ {
			list = append(list, sym(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i-1)))
		}
		return append(list, file(fmt.Sprintf("l%d/f", n)))
	}
	small := Limits{Entries: 10, Bytes: 100, Depth: 5, Xattrs: 50}
	deep := strings.Repeat("d/", 6)
	for _, c := range []struct {
		name    string
		limits  Limits
		entries []*tar.Header
		entry   string
		want    error
	}{
		{"dotdot", Limits{}, []*tar.Header{file("../evil")}, "../evil", ErrEscape},
		{"dotdot later", Limits{}, []*tar.Header{file("a/../../evil")}, "a/../../evil", ErrEscape},
		{"dotdot after a slash", Limits{}, []*tar.Header{file("/../evil")}, "/../evil", ErrEscape},
		{"dotdot by link", Limits{}, []*tar.Header{sym("out", "../../.."), file("out/../../evil")}, "out/../../evil", ErrEscape},
		{"hard link out", Limits{}, []*tar.Header{hard("passwd", "../../etc/passwd")}, "passwd", ErrEscape},
		{"hard link to nothing", Limits{}, []*tar.Header{hard("a", "b")}, "a", ErrHardLink},
		{"hard link to itself", Limits{}, []*tar.Header{hard("a", "a")}, "a", ErrHardLink},
		{"hard links in a ring", Limits{}, []*tar.Header{hard("a", "b"), hard("b", "c"), hard("c", "a")}, "a", ErrHardLink},
		{"hard link to a directory", Limits{}, []*tar.Header{dir("d"), hard("a", "d")}, "a", ErrHardLink},
		{"hard link to what it replaces", Limits{}, []*tar.Header{file("d/f"), hard("d", "d/f")}, "d", ErrHardLink},
		{"hard link to a later directory", Limits{}, []*tar.Header{hard("a", "d"), dir("d")}, "a", ErrHardLink},
		{"link to itself", Limits{}, []*tar.Header{sym("a", "a"), file("a/f")}, "a/f", ErrLoop},
		{"links in a ring", Limits{}, []*tar.Header{sym("a", "b"), sym("b", "/a/."), file("a/f")}, "a/f", ErrLoop},
		{"links too many", Limits{}, chain(41), "l41/f", ErrLoop},
		{"links that multiply", Limits{}, []*tar.Header{dir("x"), sym("a", strings.Repeat("x/../", 500)+"x"), sym("b", strings.Repeat("a/../", 30)+"a"), file("b/f")}, "b/f", ErrLoop},
		{"parent is a file", Limits{}, []*tar.Header{file("a"), file("a/b")}, "a/b", ErrNotDirectory},
		{"root is a file", Limits{}, []*tar.Header{file(".")}, ".", ErrNotDirectory},
		{"root is a link", Limits{}, []*tar.Header{sym("/", "/elsewhere")}, "/", ErrNotDirectory},
		{"entries", small, []*tar.Header{file("1"), file("2"), file("3"), file("4"), file("5"), file("6"), file("7"), file("8"), file("9"), file("10"), file("11")}, "11", ErrLimit},
		{"bytes", small, []*tar.Header{{Name: "big", Uname: strings.Repeat("x", 101)}}, "big", ErrLimit},
		{"bytes in all", small, []*tar.Header{{Name: "big", Uname: strings.Repeat("x", 60)}, {Name: "more", Uname: strings.Repeat("x", 60)}}, "more", ErrLimit},
		{"depth", small, []*tar.Header{file(deep + "f")}, deep + "f", ErrLimit},
		{"depth by links", small, []*tar.Header{dir("a/b/c"), sym("s", "a/b/c"), dir("s/d"), file("s/d/e/f")}, "s/d/e/f", ErrLimit},
		{"attributes", small, []*tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 60)}}}, "f", ErrLimit},
		{"name", Limits{}, []*tar.Header{file(strings.Repeat("n", 256))}, strings.Repeat("n", 256), ErrLimit},
		{"name by link", Limits{}, []*tar.Header{sym("l", strings.Repeat("n", 256)), file("l/f")}, "l/f", ErrLimit},
		{"path", Limits{}, []*tar.Header{file(strings.Repeat("nn/", 1500) + "f")}, strings.Repeat("nn/", 1500) + "f", ErrLimit},
		{"target", Limits{}, []*tar.Header{sym("l", strings.Repeat("t", 4096))}, "l", ErrLimit},
		{"owner", Limits{}, []*tar.Header{{Name: "f", Uid: 1 << 33}}, "f", ErrCorrupt},
		{"device", Limits{}, []*tar.Header{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1 << 20}}, "dev", ErrCorrupt},
		{"kind", Limits{}, []*tar.Header{{Name: "odd", Typeflag: 'Q'}}, "odd", ErrUnsupported},
		{"whiteout of nothing", Limits{}, []*tar.Header{file("a/.wh.")}, "a/.wh.", ErrCorrupt},
		{"whiteout of the parent", Limits{}, []*tar.Header{file("a/.wh...")}, "a/.wh...", ErrCorrupt},
		{"acl", Limits{}, []*tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "nonsense"}}}, "/f", ErrLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := builder(t, Options{Limits: c.limits})
			_, err := b.Ext4(context.Background(), stack(true, pack(t, c.entries...)), nil)
			if !errors.Is(err, c.want) {
				t.Fatalf("want %q, have %v", c.want, err)
			}
			var e *EntryError
			if !errors.As(err, &e) || e.Entry != c.entry && strings.TrimSuffix(e.Entry, "/") != c.entry {
				t.Errorf("does not name the entry: %v", err)
			}
			var i *Error
			if !errors.As(err, &i) || i.Image != "test" {
				t.Errorf("does not name the image: %v", err)
			}
			if len(err.Error()) > 600 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
			if left, _ := os.ReadDir(b.cache.dir + "/ext4"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestAllowed are archives that look odd and are fine.
func TestAllowed(t *testing.T) {
	b := builder(t, Options{})
	lower := pack(t, &tar.Header{Name: "file", Uname: "x"}, &tar.Header{Name: "dir/sub/f", Uname: "y"}, &tar.Header{Name: "lnk", Typeflag: tar.TypeSymlink, Linkname: "/dir"})
	upper := pack(t,
		&tar.Header{Name: "file/now/a/dir", Uname: "1"},
		&tar.Header{Name: "dir", Uname: "now a file"},
		&tar.Header{Name: "early", Typeflag: tar.TypeLink, Linkname: "late"},
		&tar.Header{Name: "late", Uname: "2"},
		&tar.Header{Name: "/abs", Uname: "3"},
		&tar.Header{Name: "x/../y", Uname: "4"},
		&tar.Header{Name: "late", Uname: "5"},
		&tar.Header{Name: ".wh..wh.plnk/1.2", Uname: "6"},
		&tar.Header{Name: "sock", Typeflag: tar.TypeFifo},
		&tar.Header{Name: ".wh.nothing-there"},
	)
	path, err := b.Ext4(context.Background(), stack(true, lower, upper), nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, path)
}

// TestBombs unpacks more from less than any image has reason to.
func TestBombs(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	tw := tar.NewWriter(w)
	const size = 300 << 20
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	io.CopyN(tw, zeros{}, size)
	tw.Close()
	w.Close()
	img := stack(true, z.Bytes())
	img.layers[0].diffID = ""
	b := builder(t, Options{})
	if _, err := b.Ext4(context.Background(), img, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("a bomb of zeros: %v", err)
	}

	// Nothing but padding after the archive's end.
	raw := append(pack(t, &tar.Header{Name: "f"}), make([]byte, 2<<20)...)
	img = stack(true, raw)
	b = builder(t, Options{Limits: Limits{Bytes: 1500, Entries: 10}})
	if _, err := b.Ext4(context.Background(), img, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("a long end: %v", err)
	}

	// A sparse file that claims far more than the archive holds.
	raw = pack(t, &tar.Header{Name: "huge", PAXRecords: nil, Uname: ""})
	sparse := sparseArchive(t, 1<<50)
	b = builder(t, Options{})
	if _, err := b.Ext4(context.Background(), stack(true, raw, sparse), nil); !errors.Is(err, ErrLimit) {
		t.Errorf("a huge hole: %v", err)
	}
}

// sparseArchive holds one file that is all hole.
func sparseArchive(t testing.TB, size int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	record := func(k, v string) string {
		body := " " + k + "=" + v + "\n"
		n := len(body) + 1
		for n != len(body)+len(fmt.Sprint(n)) {
			n = len(body) + len(fmt.Sprint(n))
		}
		return fmt.Sprint(n) + body
	}
	pax := record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1") + record("GNU.sparse.name", "hole") +
		record("GNU.sparse.size", fmt.Sprint(size)) + record("GNU.sparse.numblocks", "0") + record("GNU.sparse.map", "")
	for _, h := range []struct {
		kind byte
		body string
	}{{'x', pax}, {'0', ""}} {
		block := make([]byte, 512)
		copy(block, "hole")
		copy(block[100:], "0000644\x000000000\x000000000\x00")
		copy(block[124:], fmt.Sprintf("%011o\x00", len(h.body)))
		copy(block[136:], "00000000000\x00        ")
		block[156] = h.kind
		copy(block[257:], "ustar\x0000")
		sum := 0
		for _, b := range block {
			sum += int(b)
		}
		copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
		buf.Write(block)
		buf.WriteString(h.body)
		buf.Write(make([]byte, (512-len(h.body)%512)%512))
	}
	buf.Write(make([]byte, 1024))
	return buf.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestDamagedArchives(t *testing.T) {
	raw := pack(t, &tar.Header{Name: "a", Uname: strings.Repeat("x", 2000)}, &tar.Header{Name: "b"})
	for _, n := range []int{1, 511, 600, 1024, 2000} {
		img := stack(true, raw[:n])
		b := builder(t, Options{})
		if _, err := b.Ext4(context.Background(), img, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	garbage := bytes.Repeat([]byte("garbage "), 200)
	if _, err := builder(t, Options{}).Ext4(context.Background(), stack(true, garbage), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("garbage: %v", err)
	}
}

// TestDiskFull builds in a file system that is too small, at several sizes,
// so that it ends at several places.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	body := strings.Repeat("not compressible, not zero ", 40000)
	img := stack(true, pack(t, &tar.Header{Name: "a", Uname: body}, &tar.Header{Name: "b", Uname: body}))
	for _, size := range []string{"256k", "1m", "2m", "3m", "4m"} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		func() {
			defer unix.Unmount(dir, 0)
			b, err := New(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.Ext4(context.Background(), img, nil)
			var e *Error
			if !errors.Is(err, unix.ENOSPC) || !errors.As(err, &e) || e.Hint == "" {
				t.Errorf("%s: %v", size, err)
			}
			nothingLeft(t, b)
			if left, _ := os.ReadDir(dir + "/ext4"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}()
	}
}
