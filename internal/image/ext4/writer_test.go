package ext4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// finish closes a file system and makes its file as long as it is.
func finish(t testing.TB, w *Writer, f *os.File) int64 {
	t.Helper()
	size, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return size
}

func newFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "fs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// fsck wants e2fsck to find nothing, and returns its last line.
func fsck(t testing.TB, f *os.File) string {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "Pass ") && !strings.HasPrefix(line, "e2fsck ") {
			t.Fatalf("e2fsck has something to say:\n%s", out)
		}
	}
	return lines[len(lines)-1]
}

// debugfs asks e2fsprogs' own reader.
func debugfs(t testing.TB, f *os.File, request string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", request, f.Name()).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", request, err)
	}
	return string(out)
}

var regular = Attributes{Mode: modeRegular | 0o644, Links: 1, ModTime: time.Unix(1e9, 0)}
var directory = Attributes{Mode: modeDir | 0o755, ModTime: time.Unix(1e9, 0)}

// sample writes a little of everything and returns the file system's digest.
func sample(t testing.TB, seed byte) string {
	t.Helper()
	f := newFile(t)
	o := Options{UUID: [16]byte{seed, 1}, HashSeed: [16]byte{seed, 2}, Time: time.Unix(0, 0), Bytes: 1 << 20}
	w := NewWriter(f, o)
	var entries []Entry
	for i := range 700 {
		ino := w.Reserve()
		a := regular
		a.Xattrs = map[string]string{"user.n": fmt.Sprint(i), "security.long": strings.Repeat("x", i)}
		body := bytes.Repeat([]byte{byte(i)}, i*17)
		data := []Data{{0, int64(len(body))}}
		if len(body) == 0 {
			data = nil
		}
		if err := w.AddFile(ino, a, int64(len(body)), data, bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, Entry{fmt.Sprintf("a file of number %d", i), ino, a.Mode})
	}
	if err := w.AddDir(Root, Root, directory, entries); err != nil {
		t.Fatal(err)
	}
	finish(t, w, f)
	fsck(t, f)
	raw, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// TestSameBytes holds the format still: caches and digests of snapshots depend
// on it. Who changes it on purpose raises the version of the image package's
// format, and writes the new digest here.
func TestSameBytes(t *testing.T) {
	const want = "da4582a101a022195012a8765c922ec7126a2252f1387829169fb4fec0517523"
	one, two := sample(t, 1), sample(t, 1)
	if one != two {
		t.Error("the same files came out as other bytes")
	}
	if one != want {
		t.Errorf("the format changed: %s", one)
	}
	if sample(t, 2) == one {
		t.Error("the UUID makes no difference")
	}
}

func TestEmpty(t *testing.T) {
	f := newFile(t)
	w := NewWriter(f, Options{})
	if err := w.AddDir(Root, Root, directory, nil); err != nil {
		t.Fatal(err)
	}
	finish(t, w, f)
	fsck(t, f)
}

// TestDirectories makes directories of many sizes: lists, indexes of one
// level and of two.
func TestDirectories(t *testing.T) {
	for _, c := range []struct {
		count, name int
		levels      string
	}{{5, 10, ""}, {140, 20, ""}, {200, 20, "Indirect levels: 0"}, {20000, 30, "Indirect levels: 0"}, {30000, 250, "Indirect levels: 1"}} {
		t.Run(fmt.Sprint(c.count), func(t *testing.T) {
			f := newFile(t)
			w := NewWriter(f, Options{HashSeed: [16]byte{9}, Bytes: 64 << 20})
			file := w.Reserve()
			a := regular
			a.Links = 1
			if err := w.AddFile(file, a, 0, nil, nil); err != nil {
				t.Fatal(err)
			}
			dir := w.Reserve()
			entries := []Entry{{"the file", file, a.Mode}}
			pipe := Attributes{Mode: modeFifo | 0o600, Links: 1}
			for i := range c.count {
				ino := w.Reserve()
				if err := w.AddSpecial(ino, pipe); err != nil {
					t.Fatal(err)
				}
				entries = append(entries, Entry{fmt.Sprintf("%0*d", c.name, i), ino, pipe.Mode})
			}
			if err := w.AddDir(dir, Root, directory, entries); err != nil {
				t.Fatal(err)
			}
			if err := w.AddDir(Root, Root, directory, []Entry{{"d", dir, directory.Mode}}); err != nil {
				t.Fatal(err)
			}
			finish(t, w, f)
			fsck(t, f)
			if c.levels != "" && !strings.Contains(debugfs(t, f, "htree_dump /d"), c.levels) {
				t.Errorf("no index with %s", c.levels)
			}
		})
	}
}

// TestHash compares the hash of names with e2fsprogs'.
func TestHash(t *testing.T) {
	h := newHasher([16]byte{})
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		name := make([]byte, 1+r.IntN(100))
		for i := range name {
			name[i] = "abcXYZ019_-."[r.IntN(12)]
		}
		if name[0] == '-' {
			name[0] = 'x'
		}
		f := filepath.Join(t.TempDir(), "empty")
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("debugfs", "-R", "dx_hash -h half_md4 "+string(name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(" 0x%x ", h.sum(string(name)))
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: want %s, have %s", name, out, want)
		}
	}
}

// pattern is a file without end whose bytes tell where they are.
type pattern struct{}

func (pattern) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at>>12) | 1
	}
	return len(p), nil
}

// TestExtents makes files of so many pieces that the map of their blocks is a
// tree of several levels, and one that spans groups.
func TestExtents(t *testing.T) {
	for _, pieces := range []int{1, 4, 5, 341, 3000, 130000} {
		f := newFile(t)
		w := NewWriter(f, Options{Bytes: 3 * int64(pieces) * BlockSize})
		var data []Data
		for i := range pieces {
			start := int64(i) * 2 * BlockSize
			data = append(data, Data{start, start + BlockSize})
		}
		size := data[len(data)-1].End + 12345
		addOne(t, w, size, data)
		finish(t, w, f)
		fsck(t, f)
		for _, i := range []int{0, pieces / 2, pieces - 1} {
			compare(t, f, data[i].Start/BlockSize, pattern{})
		}
	}
	f := newFile(t)
	w := NewWriter(f, Options{Bytes: 300 << 20})
	addOne(t, w, 300<<20-5, []Data{{0, 300<<20 - 5}})
	finish(t, w, f)
	fsck(t, f)
	for _, block := range []int64{0, 30000, 32768, 70000, 300<<20/BlockSize - 2} {
		compare(t, f, block, pattern{})
	}
}

func addOne(t testing.TB, w *Writer, size int64, data []Data) {
	t.Helper()
	ino := w.Reserve()
	if err := w.AddFile(ino, regular, size, data, pattern{}); err != nil {
		t.Fatal(err)
	}
	if err := w.AddDir(Root, Root, directory, []Entry{{"f", ino, regular.Mode}}); err != nil {
		t.Fatal(err)
	}
}

// compare reads a block of the file /f where e2fsprogs says that it is.
func compare(t testing.TB, f *os.File, block int64, want pattern) {
	t.Helper()
	var at int64
	if _, err := fmt.Sscan(debugfs(t, f, fmt.Sprintf("bmap /f %d", block)), &at); err != nil || at == 0 {
		t.Fatalf("block %d is nowhere: %v", block, err)
	}
	got, expected := make([]byte, BlockSize), make([]byte, BlockSize)
	if _, err := f.ReadAt(got, at*BlockSize); err != nil {
		t.Fatal(err)
	}
	want.ReadAt(expected, block*BlockSize)
	if !bytes.Equal(got, expected) {
		t.Errorf("block %d holds something else", block)
	}
}

// TestManyInodes has more files than one group has inodes, with next to no data.
func TestManyInodes(t *testing.T) {
	f := newFile(t)
	w := NewWriter(f, Options{Bytes: 1 << 20})
	var entries []Entry
	for i := range 3*inodesPerGroup + 1 {
		ino := w.Reserve()
		if err := w.AddFile(ino, regular, 0, nil, nil); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, Entry{fmt.Sprint(i), ino, regular.Mode})
	}
	var dirs []Entry
	for i := range 40 {
		ino := w.Reserve()
		if err := w.AddDir(ino, Root, directory, nil); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, Entry{fmt.Sprint("d", i), ino, directory.Mode})
	}
	if err := w.AddDir(Root, Root, directory, append(entries, dirs...)); err != nil {
		t.Fatal(err)
	}
	size := finish(t, w, f)
	fsck(t, f)
	if err := f.Truncate(size + 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := Grow(f, size+1<<30); err != nil {
		t.Fatal(err)
	}
	fsck(t, f)
}

// TestManyLinks is about the largest counts of links.
func TestManyLinks(t *testing.T) {
	f := newFile(t)
	w := NewWriter(f, Options{Bytes: 1 << 30})
	one := regular
	one.Links = maxLinks
	ino := w.Reserve()
	if err := w.AddFile(ino, one, 0, nil, nil); err != nil {
		t.Fatal(err)
	}
	var entries []Entry
	for i := range maxLinks {
		entries = append(entries, Entry{fmt.Sprint(i), ino, one.Mode})
	}
	// And a directory of more directories than a count of links can tell.
	for i := range maxLinks {
		sub := w.Reserve()
		if err := w.AddDir(sub, Root, directory, nil); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, Entry{fmt.Sprint("d", i), sub, directory.Mode})
	}
	if err := w.AddDir(Root, Root, directory, entries); err != nil {
		t.Fatal(err)
	}
	finish(t, w, f)
	fsck(t, f)
	one.Links = maxLinks + 1
	if err := w.AddFile(w.Reserve(), one, 0, nil, nil); !errors.Is(err, ErrLinks) {
		t.Errorf("%v", err)
	}
}

func TestErrors(t *testing.T) {
	w := NewWriter(newFile(t), Options{})
	link := Attributes{Mode: modeSymlink | 0o777, Links: 1, Target: strings.Repeat("x", maxSymlink+1)}
	if err := w.AddSpecial(w.Reserve(), link); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long link: %v", err)
	}
	for name, value := range map[string]string{
		"user.big": strings.Repeat("x", 5000), "other.space": "", "user.": "", "system.posix_acl_access": "", "system.posix_acl_default": "\x02\x00\x00\x00\x01",
	} {
		a := regular
		a.Xattrs = map[string]string{name: value}
		if err := w.AddFile(w.Reserve(), a, 0, nil, nil); !errors.Is(err, ErrAttributes) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.AddDir(w.Reserve(), Root, directory, []Entry{{strings.Repeat("n", 256), Root, modeDir}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long name: %v", err)
	}
	for _, d := range []Data{{1, 5}, {0, 0}, {0, 9}} {
		if err := w.AddFile(w.Reserve(), regular, 8, []Data{d}, pattern{}); err == nil {
			t.Errorf("%v: no error", d)
		}
	}
	if err := w.AddFile(w.Reserve(), regular, 8, []Data{{0, 8}}, strings.NewReader("short")); err != nil {
		t.Errorf("a last block that is cut short is zeros: %v", err)
	}
	if err := w.AddFile(w.Reserve(), regular, 3*BlockSize, []Data{{0, 3 * BlockSize}}, strings.NewReader("short")); err == nil {
		t.Error("a file shorter than said: no error")
	}
}

func TestGrowForeign(t *testing.T) {
	f := newFile(t)
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	if err := Grow(f, 64<<20); !errors.Is(err, ErrForeign) {
		t.Errorf("zeros: %v", err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", f.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := f.Truncate(128 << 20); err != nil {
		t.Fatal(err)
	}
	if err := Grow(f, 128<<20); !errors.Is(err, ErrForeign) {
		t.Errorf("mke2fs's: %v", err)
	}
}
