package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	gcrname "github.com/google/go-containerregistry/pkg/name"
)

// writeLayout makes an OCI layout of images by their tags.
func writeLayout(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	l, err := ocilayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range images {
		err := l.ReplaceImage(img, match.Name(tag), ocilayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}))
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tarOf packs a directory with GNU tar.
func tarOf(t testing.TB, dir string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "packed.tar")
	args = append([]string{"-C", dir, "-cf", path, "--xattrs", "--xattrs-include=*", "--format=pax"}, append(args, ".")...)
	if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return path
}

func TestLayout(t *testing.T) {
	one, two := imageOf(t, "amd64", twoLayers(t)...), imageOf(t, "amd64", twoLayers(t)[:1]...)
	dir := writeLayout(t, map[string]v1.Image{"one": one, "two": two})
	file := tarOf(t, dir, "--sort=name")
	squeezed := file + ".gz"
	if err := os.WriteFile(squeezed, gzipped(t, file), 0o600); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	p := Platform{Arch: "amd64"}
	var built []string
	for _, source := range []string{"oci:" + dir, "oci-archive:" + file, "oci-archive:" + squeezed} {
		for tag, img := range map[string]v1.Image{"one": one, "two": two} {
			want, _ := img.Digest()
			for _, ref := range []string{source + ":" + tag, source + "@" + want.String()} {
				got, err := b.Resolve(context.Background(), ref, p)
				if err != nil || got.Digest != want.String() || got.Config.User != "app:staff" {
					t.Fatalf("%s: %+v, %v", ref, got, err)
				}
				path, err := b.Ext4(context.Background(), got, nil)
				if err != nil {
					t.Fatal(err)
				}
				check(t, path)
				built = append(built, path)
				os.Remove(path)
			}
		}
		_, err := b.Resolve(context.Background(), source, p)
		if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), "one, two") {
			t.Errorf("which one? %v", err)
		}
		_, err = b.Resolve(context.Background(), source+":three", p)
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "one, two") {
			t.Errorf("no such tag: %v", err)
		}
	}
	for _, path := range built {
		if path != built[0] && path != built[2] && path != built[1] {
			t.Errorf("the same image in another place: %s", path)
		}
	}
	if _, err := b.Resolve(context.Background(), "oci:"+dir+"/missing", p); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func gzipped(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(raw)
	w.Close()
	return buf.Bytes()
}

func TestLayoutOfSeveralPlatforms(t *testing.T) {
	layers := twoLayers(t)
	amd, arm := imageOf(t, "amd64", layers...), imageOf(t, "arm64", layers...)
	dir := t.TempDir()
	l, err := ocilayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	if err := l.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	for arch, img := range map[string]v1.Image{"amd64": amd, "arm64": arm} {
		want, _ := img.Digest()
		got, err := b.Resolve(context.Background(), "oci:"+dir, Platform{Arch: arch})
		if err != nil || got.Digest != want.String() {
			t.Errorf("%s: %v, %v", arch, got, err)
		}
	}
	var e *PlatformError
	if _, err := b.Resolve(context.Background(), "oci:"+dir, Platform{Arch: "s390x"}); !errors.As(err, &e) || len(e.Have) != 2 {
		t.Errorf("%v", err)
	}
}

// TestLayoutDamaged changes each file of a layout in turn.
func TestLayoutDamaged(t *testing.T) {
	img := imageOf(t, "amd64", twoLayers(t)...)
	pristine := writeLayout(t, map[string]v1.Image{"one": img})
	blobs, err := filepath.Glob(filepath.Join(pristine, "blobs", "sha256", "*"))
	if err != nil || len(blobs) != 4 {
		t.Fatal(blobs, err)
	}
	for _, blob := range blobs {
		raw, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		for how, damaged := range map[string][]byte{
			"flipped": append([]byte{raw[0] ^ 1}, raw[1:]...), "cut": raw[:len(raw)-1], "longer": append(bytes.Clone(raw), 0), "missing": nil,
		} {
			os.Remove(blob)
			if damaged != nil {
				if err := os.WriteFile(blob, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b := builder(t, Options{})
			got, err := b.Resolve(context.Background(), "oci:"+pristine, Platform{Arch: "amd64"})
			if err == nil {
				_, err = b.Ext4(context.Background(), got, nil)
			}
			var e *DigestError
			if how == "missing" && !errors.Is(err, ErrNotFound) || how != "missing" && !errors.As(err, &e) {
				t.Errorf("%s %s: %v", filepath.Base(blob), how, err)
			}
		}
		if err := os.WriteFile(blob, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDockerArchive(t *testing.T) {
	needRoot(t)
	img := imageOf(t, "amd64", twoLayers(t)...)
	other := imageOf(t, "amd64", twoLayers(t)[:1]...)
	file := filepath.Join(t.TempDir(), "saved.tar")
	tag, _ := gcrname.NewTag("example/app:v1")
	tag2, _ := gcrname.NewTag("example/other:latest")
	if err := tarball.MultiWriteToFile(file, map[gcrname.Tag]v1.Image{tag: img, tag2: other}); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	p := Platform{Arch: "amd64"}
	want, _ := img.ConfigName()
	got, err := b.Resolve(context.Background(), "docker-archive:"+file+":example/app:v1", p)
	if err != nil || got.Digest != want.String() || got.Config.WorkingDir != "/work" {
		t.Fatalf("%+v, %v", got, err)
	}
	path, err := b.Ext4(context.Background(), got, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, path)
	mountExt4(t, path, func(dir string) {
		if diff := cmp.Diff([]string{"", "etc", "etc/kept", "etc/new"}, names(lookAround(t, dir))); diff != "" {
			t.Error(diff)
		}
	})
	if _, err := b.Resolve(context.Background(), "docker-archive:"+file+":example/other", p); err != nil {
		t.Error(err)
	}
	if _, err := b.Resolve(context.Background(), "docker-archive:"+file, p); !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), "example/app:v1") {
		t.Errorf("which one? %v", err)
	}
	if _, err := b.Resolve(context.Background(), "docker-archive:"+file+":nobody/knows", p); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := b.Resolve(context.Background(), "docker-archive:/nonexistent.tar", p); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	var e *PlatformError
	if _, err := b.Resolve(context.Background(), "docker-archive:"+file+":example/app:v1", Platform{Arch: "arm64"}); !errors.As(err, &e) {
		t.Errorf("%v", err)
	}
}

// TestDockerArchiveOfOldTools has a layer that is a link to another image's.
func TestDockerArchiveOfOldTools(t *testing.T) {
	raw := twoLayers(t)[0]
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestBytes(raw)}}})
	list, _ := json.Marshal([]dockerImage{{Config: "config.json", Layers: []string{"b/layer.tar"}}})
	file := filepath.Join(t.TempDir(), "old.tar")
	packed := pack(t,
		&tar.Header{Name: "a/layer.tar", Uname: string(raw)},
		&tar.Header{Name: "b/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../a/layer.tar"},
		&tar.Header{Name: "config.json", Uname: string(config)},
		&tar.Header{Name: "manifest.json", Uname: string(list)})
	if err := os.WriteFile(file, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	_, path := build(t, b, "docker-archive:"+file)
	check(t, path)
	loop := pack(t, &tar.Header{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: "manifest.json"})
	if err := os.WriteFile(file, loop, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resolve(context.Background(), "docker-archive:"+file, Platform{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

// furnish fills a directory with one of everything.
func furnish(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(in("d/sub"), 0o755))
	must(os.WriteFile(in("plain"), []byte("hello"), 0o640))
	must(os.WriteFile(in("empty"), nil, 0o600))
	must(os.WriteFile(in("d/.wh.not-a-whiteout"), []byte("x"), 0o600))
	must(os.WriteFile(in("\xff\xfename\n"), []byte("odd"), 0o600))
	must(os.WriteFile(in(strings.Repeat("n", 255)), []byte("long"), 0o600))
	must(os.Link(in("plain"), in("d/linked")))
	must(os.Symlink("/plain", in("short")))
	must(os.Symlink(strings.Repeat("far/", 200), in("far")))
	must(os.Symlink(strings.Repeat("x", 59), in("exact")))
	must(os.Symlink(strings.Repeat("x", 60), in("over")))
	must(os.Link(in("short"), in("d/same-link")))
	must(unix.Mkfifo(in("pipe"), 0o622))
	must(unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(in("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	must(os.WriteFile(in("suid"), []byte("#!"), 0o755))
	must(os.Lchown(in("suid"), 1<<31, 70000))
	must(unix.Chmod(in("suid"), 0o6755))
	must(unix.Chmod(in("d/sub"), 0o1777))
	must(os.WriteFile(in("capable"), []byte("#!"), 0o755))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(unix.Lsetxattr(in("capable"), "security.capability", []byte(capability), 0))
	must(unix.Lsetxattr(in("capable"), "user.empty", nil, 0))
	must(unix.Lsetxattr(in("capable"), "user.long", bytes.Repeat([]byte("v"), 900), 0))
	must(unix.Lsetxattr(in("capable"), "user.zz", bytes.Repeat([]byte("w"), 901), 0))
	must(unix.Lsetxattr(in("capable"), "trusted.a", bytes.Repeat([]byte("u"), 333), 0))
	must(unix.Lsetxattr(in("d"), "user.of-dir", []byte("1"), 0))
	// user::rw-, user:1000:rwx, group::r--, mask::rwx, other::r--
	acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"
	must(unix.Lsetxattr(in("plain"), "system.posix_acl_access", []byte(acl), 0))
	must(unix.Lsetxattr(in("d/sub"), "system.posix_acl_default", []byte(acl), 0))
	f, err := os.Create(in("sparse"))
	must(err)
	_, err = f.WriteAt([]byte("in the middle"), 3<<20)
	must(err)
	must(f.Truncate(50 << 20))
	must(f.Close())
	must(os.WriteFile(in("odd-size"), bytes.Repeat([]byte("0123456789"), 123457), 0o600))
	must(os.MkdirAll(in("many"), 0o755))
	for i := range 3000 {
		must(os.WriteFile(in("many/"+strings.Repeat("f", i%50)+string(rune('a'+i%26))+strings.Repeat("z", i/26%9)+itoa(i)), nil, 0o600))
	}
	must(unix.UtimesNanoAt(unix.AT_FDCWD, in("plain"), []unix.Timespec{{Sec: -5, Nsec: 7}, {Sec: -5, Nsec: 7}}, 0))
	must(unix.UtimesNanoAt(unix.AT_FDCWD, in("empty"), []unix.Timespec{{Sec: 5e9, Nsec: 999999999}, {Sec: 5e9, Nsec: 999999999}}, 0))
}

func itoa(i int) string {
	return string(rune('0'+i/1000%10)) + string(rune('0'+i/100%10)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))
}

// TestDirAndTar builds one of everything from the directory itself and from
// archives of it, and mounts what comes out.
func TestDirAndTar(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	furnish(t, dir)
	want := lookAround(t, dir)

	plain := tarOf(t, dir)
	sparse := tarOf(t, dir, "--sparse")
	gnu := filepath.Join(t.TempDir(), "gnu.tar")
	if out, err := exec.Command("tar", "-C", dir, "--format=gnu", "--sparse", "-cf", gnu, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	zipped := filepath.Join(t.TempDir(), "packed.tar.gz")
	if err := os.WriteFile(zipped, gzipped(t, sparse), 0o600); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	zw, _ := zstd.NewWriter(&z)
	raw, _ := os.ReadFile(sparse)
	zw.Write(raw)
	zw.Close()
	zstded := filepath.Join(t.TempDir(), "packed.tar.zst")
	if err := os.WriteFile(zstded, z.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, ref := range map[string]string{
		"dir": "dir:" + dir, "tar": "tar:" + plain, "sparse": "tar:" + sparse, "gnu": "tar:" + gnu, "gzip": "tar:" + zipped, "zstd": "tar:" + zstded,
	} {
		t.Run(name, func(t *testing.T) {
			b := builder(t, Options{})
			_, path := build(t, b, ref)
			check(t, path)
			grown := filepath.Join(t.TempDir(), "grown")
			if err := Grow(context.Background(), path, grown, 300<<20); err != nil {
				t.Fatal(err)
			}
			check(t, grown)
			mountExt4(t, grown, func(dir string) {
				got := lookAround(t, dir)
				if name == "gnu" { // knows neither attributes nor parts of a second
					for _, all := range []map[string]entry{got, want} {
						for k, e := range all {
							e.Xattrs, e.Mtime = "", ""
							all[k] = e
						}
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-original +image:\n%s", diff)
				}
				var st unix.Stat_t
				if err := unix.Stat(dir+"/sparse", &st); err != nil || st.Blocks*512 > 1<<20 {
					t.Errorf("the sparse file takes %d bytes", st.Blocks*512)
				}
			})
			want = lookAround(t, dir)
		})
	}
}

func TestDirChanges(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := builder(t, Options{})
	one, err := b.Resolve(context.Background(), "dir:"+dir, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/f", []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	var e *DigestError
	if _, err := b.Ext4(context.Background(), one, nil); !errors.As(err, &e) {
		t.Errorf("a directory that changed since: %v", err)
	}
	two, err := b.Resolve(context.Background(), "dir:"+dir, Platform{})
	if err != nil || two.Digest == one.Digest {
		t.Errorf("%v, %v", two, err)
	}
	for _, ref := range []string{"dir:", "tar:", "oci:", "docker-archive:"} {
		if _, err := b.Resolve(context.Background(), ref, Platform{}); !errors.Is(err, ErrReference) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"dir:/nonexistent", "tar:/nonexistent", "tar:" + dir, "dir:" + dir + "/f"} {
		if _, err := b.Resolve(context.Background(), ref, Platform{}); err == nil {
			t.Errorf("%s: no error", ref)
		}
	}
}

func TestDecompress(t *testing.T) {
	_, err := decompress(strings.NewReader("\xfd7zXZ\x00and so on"))
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("xz: %v", err)
	}
	r, err := decompress(strings.NewReader("plain"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := io.ReadAll(r); string(p) != "plain" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
}
