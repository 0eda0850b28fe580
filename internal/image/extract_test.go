package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestLikeExtraction stacks archives of random entries, links in every
// direction among them, and wants what really extracting them one after the
// other makes, with every path looked up by the kernel inside the directory.
func TestLikeExtraction(t *testing.T) {
	needRoot(t)
	var built, refused int
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "extract-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		os.Chmod(dir, 0o755)
		x := newExtractor(rt, dir)
		defer unix.Close(x.root)

		var layers [][]byte
		var failed error
		for range rapid.IntRange(1, 3).Draw(rt, "layers") {
			headers := someEntries(rt)
			layers = append(layers, pack(rt, headers...))
			if failed == nil {
				failed = x.layer(headers)
			}
		}
		got, err := buildStack(t, stack(true, layers...))
		if failed != nil {
			refused++
			var e *EntryError
			if !errors.As(err, &e) {
				rt.Fatalf("extracting fails: %v; building: %v", failed, err)
			}
			return
		}
		if err != nil {
			rt.Fatalf("extracting works; building: %v", err)
		}
		built++
		want := lookAround(t, dir)
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("the image is not what extracting makes (-extracted +image):\n%s", diff)
		}
	})
	t.Logf("%d stacks built, %d refused by both", built, refused)
	if built == 0 || refused == 0 {
		t.Error("the stacks drawn are all of one kind")
	}
}

// someEntries draws the entries of a layer.
func someEntries(t *rapid.T) []*tar.Header {
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	spelled := func(label string) string {
		parts := rapid.SliceOfN(names, 1, 3).Draw(t, label)
		prefix := rapid.SampledFrom([]string{"", "", "", "./", "/", "a/../", "//./"}).Draw(t, "prefix")
		return prefix + strings.Join(parts, "/")
	}
	var list []*tar.Header
	for range rapid.IntRange(1, 8).Draw(t, "entries") {
		h := &tar.Header{
			Name:    spelled("name"),
			Mode:    int64(rapid.IntRange(1, 0o7777).Draw(t, "mode")),
			Uid:     rapid.IntRange(0, 70000).Draw(t, "uid"),
			Gid:     rapid.IntRange(0, 70000).Draw(t, "gid"),
			ModTime: timeOf(unix.Timespec{Sec: rapid.Int64Range(-1<<31, 2<<32).Draw(t, "sec"), Nsec: rapid.Int64Range(0, 999999999).Draw(t, "nsec")}),
		}
		switch rapid.IntRange(0, 11).Draw(t, "kind") {
		case 0, 1, 2:
			h.Typeflag = tar.TypeReg
			h.Uname = rapid.StringN(0, 30, 60).Draw(t, "data")
		case 3, 4, 5:
			h.Typeflag = tar.TypeDir
		case 6, 7:
			h.Typeflag = tar.TypeSymlink
			h.Linkname = rapid.SampledFrom([]string{"a", "b", "../c", "/d", "/a/b", "../../../e", ".", "a/../b", "c/d"}).Draw(t, "target")
		case 8, 9:
			h.Typeflag = tar.TypeLink
			h.Linkname = spelled("to")
		case 10:
			h.Name = path.Join(path.Dir(h.Name), ".wh."+path.Base(h.Name))
		case 11:
			h.Name = path.Join(path.Dir(h.Name), ".wh..wh..opq")
		}
		list = append(list, h)
	}
	return list
}

// extractor extracts archives as plainly as can be.
type extractor struct {
	t     *rapid.T
	root  int
	made  map[uint64]bool          // inodes that the layer being extracted made
	times map[uint64]unix.Timespec // of directories
	links []*tar.Header            // whose target has not come yet
}

func newExtractor(t *rapid.T, dir string) *extractor {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &extractor{t: t, root: fd}
	unix.UtimesNanoAt(unix.AT_FDCWD, dir, make([]unix.Timespec, 2), 0)
	return x
}

// in opens a path the way a process does that has the directory for its root.
func (x *extractor) in(name string, flags uint64) (int, error) {
	return unix.Openat2(x.root, path.Clean("/" + name)[1:]+"/.", &unix.OpenHow{Flags: flags | unix.O_DIRECTORY | unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
}

func (x *extractor) layer(headers []*tar.Header) error {
	x.made = map[uint64]bool{}
	x.links = nil
	// Directories' times are set when nothing is done in them any more, and
	// what layers before had is put back.
	x.times = map[uint64]unix.Timespec{}
	walk(x.root, func(_ string, st *unix.Stat_t) { x.times[st.Ino] = st.Mtim })
	var adds []*tar.Header
	for _, h := range headers {
		dir, base := path.Split(path.Clean("/" + h.Name))
		if !strings.HasPrefix(base, ".wh.") {
			adds = append(adds, h)
			continue
		}
		if replaced, err := x.replaces(headers, dir); err != nil {
			return err
		} else if replaced {
			continue
		}
		fd, err := x.in(dir, 0)
		if errors.Is(err, unix.ELOOP) {
			return err
		}
		if err != nil {
			continue
		}
		parent := fmt.Sprintf("/proc/self/fd/%d/", fd)
		if base == ".wh..wh..opq" {
			list, _ := os.ReadDir(parent)
			for _, e := range list {
				os.RemoveAll(parent + e.Name())
			}
		} else {
			os.RemoveAll(parent + base[len(".wh."):])
		}
		unix.Close(fd)
	}
	for _, h := range adds {
		if err := x.entry(h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
	// Links to what came later. They go round until nothing changes.
	for n := len(x.links) + 1; len(x.links) > 0; {
		rest := x.links
		x.links = nil
		for _, h := range rest {
			if err := x.later(h); err != nil {
				return fmt.Errorf("%q: %w", h.Name, err)
			}
		}
		if n--; n == 0 {
			return errors.New("links to nothing")
		}
	}
	walk(x.root, func(p string, st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			at := x.times[st.Ino]
			unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{at, at}, 0)
		}
	})
	return nil
}

// replaces reports whether a layer has a directory on the way to dir, or dir
// itself, that stands where lower layers have something else.
func (x *extractor) replaces(headers []*tar.Header, dir string) (bool, error) {
	for d := path.Clean(dir); d != "/"; d = path.Dir(d) {
		if !slices.ContainsFunc(headers, func(h *tar.Header) bool {
			return h.Typeflag == tar.TypeDir && path.Clean("/"+h.Name) == d
		}) {
			continue
		}
		fd, err := x.in(path.Dir(d), 0)
		if errors.Is(err, unix.ELOOP) {
			return false, err
		}
		if err != nil {
			return true, nil
		}
		var st unix.Stat_t
		err = unix.Fstatat(fd, path.Base(d), &st, unix.AT_SYMLINK_NOFOLLOW)
		unix.Close(fd)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return true, nil
		}
	}
	return false, nil
}

// walk visits everything below a directory, last things first.
func walk(root int, do func(path string, st *unix.Stat_t)) {
	var visit func(p string)
	visit = func(p string) {
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			return
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			list, _ := os.ReadDir(p)
			for _, e := range list {
				visit(p + "/" + e.Name())
			}
		}
		do(p, &st)
	}
	visit(fmt.Sprintf("/proc/self/fd/%d/.", root))
}

// mkdirs opens a directory and makes what is missing of it, through links to
// what is missing as well.
func (x *extractor) mkdirs(name string, depth int) (string, error) {
	if depth > 40 {
		return "", unix.ELOOP
	}
	cur := "/"
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if part == "" || part == "." {
			continue
		}
		fd, err := x.in(cur, 0)
		if err != nil {
			return "", err
		}
		real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		unix.Close(fd)
		if err != nil {
			return "", err
		}
		base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", x.root))
		if err != nil {
			return "", err
		}
		here := strings.TrimPrefix(real, base) // no links in it
		if part == ".." {
			cur = path.Dir(path.Clean("/" + here))
			continue
		}
		p := real + "/" + part
		var st unix.Stat_t
		err = unix.Lstat(p, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, _ := os.Readlink(p)
			if !strings.HasPrefix(target, "/") {
				target = here + "/" + target
			}
			return x.mkdirs(target+"/"+strings.Join(parts[i+1:], "/"), depth+1)
		}
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if x.made[st.Ino] {
				return "", unix.ENOTDIR
			}
			os.Remove(p)
			err = unix.ENOENT
		}
		if errors.Is(err, unix.ENOENT) {
			if err := os.Mkdir(p, 0o755); err != nil {
				return "", err
			}
			x.note(p)
		}
		cur = here + "/" + part
	}
	fd, err := x.in(cur, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func (x *extractor) note(p string) {
	var st unix.Stat_t
	if unix.Lstat(p, &st) == nil {
		x.made[st.Ino] = true
		delete(x.times, st.Ino) // of another file that had the number before
	}
}

func (x *extractor) entry(h *tar.Header) error {
	name := path.Clean("/" + h.Name)
	dir, err := x.mkdirs(path.Dir(name), 0)
	if err != nil {
		return err
	}
	p := dir + "/" + path.Base(name)
	var st unix.Stat_t
	exists := unix.Lstat(p, &st) == nil
	isDir := exists && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if h.Typeflag == tar.TypeLink {
		return x.link(h, p)
	}
	if exists && !(isDir && h.Typeflag == tar.TypeDir) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = os.WriteFile(p, []byte(h.Uname), 0o600)
	case tar.TypeDir:
		if !isDir {
			err = os.Mkdir(p, 0o700)
		}
	case tar.TypeSymlink:
		err = os.Symlink(h.Linkname, p)
	}
	if err != nil {
		return err
	}
	x.note(p)
	if err := os.Lchown(p, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(h.Mode)); err != nil {
			return err
		}
	}
	at := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		unix.Lstat(p, &st)
		x.times[st.Ino] = at
	}
	return nil
}

// target finds what a hard link is to.
func (x *extractor) target(h *tar.Header) (string, error) {
	name := path.Clean("/" + h.Linkname)
	fd, err := x.in(path.Dir(name), 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	p := dir + "/" + path.Base(name)
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "", unix.EISDIR
	}
	return p, nil
}

// mark is what stands where a link will be.
const mark = "a link to what is not there yet: "

func (x *extractor) link(h *tar.Header, p string) error {
	target, err := x.target(h)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		os.RemoveAll(p)
		if err := os.WriteFile(p, []byte(mark+h.Linkname), 0o600); err != nil {
			return err
		}
		x.note(p)
		x.links = append(x.links, &tar.Header{Name: p, Linkname: h.Linkname})
		return nil
	case err != nil:
		return err
	case target == p:
		return nil
	}
	var a, b unix.Stat_t
	if unix.Lstat(p, &a) == nil && unix.Lstat(target, &b) == nil && a.Ino == b.Ino {
		return nil
	}
	os.RemoveAll(p)
	return os.Link(target, p)
}

// later makes a link whose target was not there before, if it is now.
func (x *extractor) later(h *tar.Header) error {
	data, err := os.ReadFile(h.Name)
	if err != nil || string(data) != mark+h.Linkname {
		return nil // something else took its place
	}
	target, err := x.target(h)
	if err != nil {
		return err
	}
	if data, _ := os.ReadFile(target); strings.HasPrefix(string(data), mark) {
		x.links = append(x.links, h)
		return nil
	}
	os.Remove(h.Name)
	return os.Link(target, h.Name)
}
