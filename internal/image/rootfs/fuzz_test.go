package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzApply stacks any two archives. Whatever they hold, the tree that comes
// out is one that can be walked, within its limits, and every hard link and
// directory is where it should be.
func FuzzApply(f *testing.F) {
	seed := func(headers ...tar.Header) []byte {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range headers {
			h.Mode = 0o755
			if h.Typeflag == 0 {
				h.Typeflag = tar.TypeReg
				h.Size = 5
			}
			if err := tw.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
			if h.Size > 0 {
				io.WriteString(tw, "bytes")
			}
		}
		tw.Close()
		return buf.Bytes()
	}
	empty := seed()
	f.Add(empty, empty)
	f.Add(seed(tar.Header{Name: "a/b"}, tar.Header{Name: "a/c", Typeflag: tar.TypeLink, Linkname: "a/b"}),
		seed(tar.Header{Name: "a/.wh.b"}, tar.Header{Name: "a/.wh..wh..opq"}, tar.Header{Name: "d/", Typeflag: tar.TypeDir}))
	f.Add(seed(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../x/./y"}, tar.Header{Name: "l/f"}, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "l/f"}),
		seed(tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "later"}, tar.Header{Name: "later", Typeflag: tar.TypeLink, Linkname: "x"}))
	f.Add(seed(tar.Header{Name: "p", Typeflag: tar.TypeFifo}, tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 1}),
		seed(tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	limits := Limits{Entries: 64, Bytes: 1 << 20, Depth: 8, Path: 200, Xattrs: 300}
	file, err := os.CreateTemp(f.TempDir(), "spool")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		spool := NewSpool(file)
		tree := NewTree(spool, limits)
		for _, raw := range [][]byte{lower, upper} {
			err := tree.Apply(context.Background(), bytes.NewReader(raw), Layer{Whiteouts: true})
			if err == nil {
				continue
			}
			var e *EntryError
			if !errors.As(err, &e) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.EOF) {
				t.Fatalf("an error of no kind: %v", err)
			}
			if len(err.Error()) > 1000 {
				t.Fatalf("%d bytes of error", len(err.Error()))
			}
			return
		}
		if err := spool.Seal(); err != nil {
			t.Fatal(err)
		}
		sane(t, tree, limits)
	})
}

func sane(t *testing.T, tree *Tree, limits Limits) {
	dirs := map[*Node]bool{}
	var visit func(n *Node, depth int)
	visit = func(n *Node, depth int) {
		if depth > limits.Depth {
			t.Fatalf("%d deep", depth)
		}
		if dirs[n] {
			t.Fatal("a directory of two names")
		}
		dirs[n] = true
		for _, name := range n.Names() {
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > maxName {
				t.Fatalf("the name %q", name)
			}
			child := n.Child(name)
			switch {
			case child.link != nil:
				t.Fatalf("%q is a link to nothing", name)
			case child.IsDir():
				visit(child, depth+1)
			case child.children != nil:
				t.Fatalf("%q is a file with files in it", name)
			case child.IsRegular():
				end := int64(0)
				for _, d := range child.Data.Data {
					if d.Start < end || d.End <= d.Start || d.Start%spoolAlign != 0 || d.End > child.Data.Size {
						t.Fatalf("%q holds %v of %d", name, child.Data.Data, child.Data.Size)
					}
					end = d.End
				}
			case child.IsSymlink() && (child.Target == "" || len(child.Target) > limits.Path):
				t.Fatalf("%q leads to %q", name, child.Target)
			}
			if child.Mode&unix.S_IFMT == 0 {
				t.Fatalf("%q is of no type", name)
			}
		}
	}
	visit(tree.Root(), 0)
	if tree.Entries() > limits.Entries || tree.Bytes() > limits.Bytes {
		t.Fatalf("%d entries, %d bytes", tree.Entries(), tree.Bytes())
	}
}
