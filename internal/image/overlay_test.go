package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestLikeOverlay changes files at random in a stack of the kernel's own
// overlays, packs each upper directory as a layer, as container builders do,
// and wants the flattened image to show what the last overlay shows.
func TestLikeOverlay(t *testing.T) {
	needRoot(t)
	rapid.Check(t, func(rt *rapid.T) {
		base, err := os.MkdirTemp("", "overlay-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(base)
		// The overlay's directories must be on a file system that can be one.
		if out, err := exec.Command("mount", "-t", "tmpfs", "tmpfs", base).CombinedOutput(); err != nil {
			rt.Fatalf("%v: %s", err, out)
		}
		defer unix.Unmount(base, unix.MNT_DETACH) // takes what is mounted below along

		lowers := []string{mustMkdir(rt, base, "empty")}
		var layers [][]byte
		var want map[string]entry
		for i := range rapid.IntRange(1, 4).Draw(rt, "layers") {
			upper := mustMkdir(rt, base, fmt.Sprint("upper", i))
			work := mustMkdir(rt, base, fmt.Sprint("work", i))
			merged := mustMkdir(rt, base, fmt.Sprint("merged", i))
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off",
				strings.Join(lowers, ":"), upper, work)
			if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
				rt.Fatalf("mounting an overlay: %v", err)
			}
			change(rt, merged)
			want = lookAround(t, merged)
			if err := unix.Unmount(merged, 0); err != nil {
				rt.Fatal(err)
			}
			layers = append(layers, packUpper(rt, upper))
			lowers = append([]string{upper}, lowers...)
		}
		got, err := buildStack(t, stack(true, layers...))
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("the image is not what the overlay shows (-overlay +image):\n%s", diff)
		}
	})
}

func mustMkdir(t *rapid.T, parts ...string) string {
	dir := filepath.Join(parts...)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

var someNames = []string{"a", "b", "c", "\xff\xfe", "a name", strings.Repeat("long", 60)}

// somePath draws a path of up to three names, existing or not.
func somePath(t *rapid.T, label string) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom(someNames), 1, 3).Draw(t, label), "/")
}

// real returns a path below dir that no symbolic link is part of, but maybe
// its end: the links that the test makes lead anywhere.
func real(t *rapid.T, dir, label string) (string, bool) {
	path := dir
	parts := strings.Split(somePath(t, label), "/")
	for i, name := range parts {
		path += "/" + name
		var st unix.Stat_t
		if i < len(parts)-1 && (unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR) {
			return "", false
		}
	}
	return path, true
}

// change does things to the files in dir; those that the kernel refuses
// don't matter.
func change(t *rapid.T, dir string) {
	for i := range rapid.IntRange(1, 20).Draw(t, "changes") {
		what := rapid.IntRange(0, 11).Draw(t, "what")
		p, ok := real(t, dir, "path")
		if !ok {
			continue
		}
		var st unix.Stat_t
		missing := unix.Lstat(p, &st) != nil
		kind := st.Mode & unix.S_IFMT
		switch what {
		case 0, 1:
			os.Mkdir(p, 0o755)
		case 2, 3:
			data := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "data")
			if missing || kind == unix.S_IFREG {
				os.WriteFile(p, data, 0o644)
			}
		case 4:
			os.RemoveAll(p)
		case 5:
			if from, ok := real(t, dir, "from"); ok {
				os.Rename(from, p)
			}
		case 6:
			if from, ok := real(t, dir, "from"); ok {
				os.Link(from, p)
			}
		case 7:
			os.Symlink(rapid.SampledFrom([]string{"a", "../b", "/c", "nowhere", strings.Repeat("x/", 100)}).Draw(t, "target"), p)
		case 8:
			if kind != unix.S_IFLNK && !missing {
				unix.Chmod(p, uint32(rapid.IntRange(0, 0o7777).Draw(t, "mode")))
			}
		case 9:
			unix.Lchown(p, rapid.IntRange(0, 1<<20).Draw(t, "uid"), rapid.IntRange(0, 1<<20).Draw(t, "gid"))
		case 10:
			value := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "value")
			name := rapid.SampledFrom([]string{"user.x", "trusted.y", "user.longer-name", "security.z"}).Draw(t, "attr")
			unix.Lsetxattr(p, name, value, 0)
		case 11:
			kinds := []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK}
			dev := unix.Mkdev(uint32(rapid.IntRange(1, 4095).Draw(t, "major")), uint32(rapid.IntRange(0, 1<<20-1).Draw(t, "minor")))
			unix.Mknod(p, kinds[i%3]|0o600, int(dev))
		}
		settleTimes(dir)
	}
}

// settleTimes gives everything that was touched the same time: directories'
// change whenever something is done in them, which archives can't tell.
func settleTimes(dir string) {
	stamp := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9, Nsec: 5}}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Mtim.Sec != 1e9 {
			unix.UtimesNanoAt(unix.AT_FDCWD, path, stamp, unix.AT_SYMLINK_NOFOLLOW)
		}
		return nil
	})
}

// packUpper packs an overlay's upper directory, its signs for what is deleted
// spelled as layers spell them.
func packUpper(t *rapid.T, upper string) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	p := &packer{ctx: t.Context(), tw: tw, seen: map[[2]uint64]string{}}
	write := func(hdr *tar.Header) {
		if err := tw.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
	}
	var visit func(path, name string)
	visit = func(path, name string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			write(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Dir(name) + "/" + whiteoutOf(filepath.Base(name)), Format: tar.FormatPAX})
			return
		}
		hdr, err := p.header(path, name, &st)
		if err != nil {
			t.Fatal(err)
		}
		opaque := hdr.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] == "y"
		for k := range hdr.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.trusted.overlay.") {
				delete(hdr.PAXRecords, k)
			}
		}
		write(hdr)
		switch hdr.Typeflag {
		case tar.TypeReg:
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.Copy(tw, f); err != nil {
				t.Fatal(err)
			}
		case tar.TypeDir:
			if opaque {
				write(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/.wh..wh..opq", Format: tar.FormatPAX})
			}
			list, err := os.ReadDir(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				visit(path+"/"+d.Name(), name+"/"+d.Name())
			}
		}
	}
	visit(upper, ".")
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func whiteoutOf(name string) string {
	// A whiteout of a name that fills a directory entry has no room for its
	// prefix on a disk, but has in an archive.
	return ".wh." + name
}
