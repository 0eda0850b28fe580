package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// entry is what a file looks like from outside. Link tells which of the names
// are the same file: it is the first of them.
type entry struct {
	Mode     uint32
	UID, GID uint32
	Mtime    string
	Rdev     uint64
	Size     int64
	Sum      string
	Target   string
	Link     string
	Xattrs   string
}

// lookAround describes every file below root.
func lookAround(t testing.TB, root string) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	first := map[[2]uint64]string{}
	var visit func(path, name string)
	visit = func(path, name string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("lstat %q: %v", path, err)
		}
		e := entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), Rdev: uint64(st.Rdev)}
		records, err := readXattrs(path)
		if err != nil {
			t.Fatal(err)
		}
		var attrs []string
		for k, v := range records {
			k = strings.TrimPrefix(k, "SCHILY.xattr.")
			if strings.HasPrefix(k, "trusted.overlay.") {
				continue
			}
			attrs = append(attrs, fmt.Sprintf("%s=%x", k, v))
		}
		sort.Strings(attrs)
		e.Xattrs = strings.Join(attrs, " ")
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			list, err := os.ReadDir(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				visit(path+"/"+d.Name(), strings.TrimPrefix(name+"/"+d.Name(), "/"))
			}
		case unix.S_IFLNK:
			e.Target, err = os.Readlink(path)
		case unix.S_IFREG:
			e.Size = st.Size
			e.Sum, err = sumFile(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			id := [2]uint64{uint64(st.Dev), st.Ino}
			if _, ok := first[id]; !ok {
				first[id] = name
			}
			e.Link = first[id]
		}
		all[name] = e
	}
	visit(root, "")
	return all
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// needRoot skips where the kernel can't be asked to mount things.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting takes root")
	}
}

// mountExt4 mounts a file system read-only for the length of do.
func mountExt4(t testing.TB, path string, do func(dir string)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mnt-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,ro", path, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			unix.Unmount(dir, unix.MNT_DETACH)
			t.Errorf("unmounting: %v", err)
		}
	}()
	do(dir)
}

// check runs e2fsck, which must find nothing to say.
func check(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Pass ") || strings.HasPrefix(line, "e2fsck ") || strings.Contains(line, "non-contiguous") {
			continue
		}
		t.Fatalf("e2fsck has something to say:\n%s", out)
	}
}

// builder returns a Builder with a cache of its own that must be empty of
// work in progress in the end.
func builder(t testing.TB, o Options) *Builder {
	t.Helper()
	dir := t.TempDir()
	b, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nothingLeft(t, b) })
	return b
}

func nothingLeft(t testing.TB, b *Builder) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(b.cache.dir, "tmp", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// build resolves and builds ref.
func build(t testing.TB, b *Builder, ref string) (*Image, string) {
	t.Helper()
	img, err := b.Resolve(context.Background(), ref, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := b.Ext4(context.Background(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img, path
}

// stack is an image made of archives in memory.
func stack(whiteouts bool, layers ...[]byte) *Image {
	img := &Image{Ref: "test", Platform: Platform{}.withDefaults()}
	h := sha256.New()
	for i, raw := range layers {
		h.Write(raw)
		img.layers = append(img.layers, layer{
			name:      fmt.Sprintf("layer %d", i),
			digest:    digestBytes(raw),
			size:      int64(len(raw)),
			diffID:    digestBytes(raw),
			whiteouts: whiteouts,
			open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(raw)), nil
			},
		})
	}
	img.Digest = digestOf(h)
	return img
}

// pack makes an archive. Regular files hold their header's Uname, which is
// otherwise of no use.
func pack(t failer, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		h := *h
		body := h.Uname
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		} else {
			body = ""
		}
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// buildStack builds an image of layers and describes what a kernel sees in it.
func buildStack(t testing.TB, img *Image) (map[string]entry, error) {
	t.Helper()
	// In memory where it can be: a build waits for the disk to have it all,
	// and there are hundreds of them.
	dir, err := os.MkdirTemp("/dev/shm", "image-test-")
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	b, err := New(dir, Options{})
	if err != nil {
		return nil, err
	}
	defer nothingLeft(t, b)
	path, err := b.Ext4(context.Background(), img, nil)
	if err != nil {
		return nil, err
	}
	check(t, path)
	var got map[string]entry
	mountExt4(t, path, func(dir string) { got = lookAround(t, dir) })
	return got, os.Remove(path)
}

// failer is what a property can fail by.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func sorted(list []string) []string {
	sort.Strings(list)
	return list
}

func sameFile(t testing.TB, a, b string) bool {
	t.Helper()
	var sums [2]string
	for i, path := range []string{a, b} {
		sum, err := sumFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sum
	}
	return sums[0] == sums[1]
}
