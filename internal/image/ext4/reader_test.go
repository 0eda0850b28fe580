package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// all reads a whole file system: each name with what is to be known of it.
func all(r io.ReaderAt, size int64) (map[string]string, error) {
	f, err := NewReader(r, size)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	err = f.Walk(context.Background(), func(file *Node) error {
		line := fmt.Sprintf("%o %d:%d", file.Mode, file.UID, file.GID)
		switch {
		case file.IsSymlink():
			line += " -> " + file.Target
		case file.IsRegular():
			if file.Size > 64<<20 {
				return fmt.Errorf("%s has %d bytes", file.Path, file.Size)
			}
			p := make([]byte, file.Size)
			if n, err := f.ReadAt(file, p, 0); err != nil || n != len(p) {
				return fmt.Errorf("%s: %d bytes, %w", file.Path, n, err)
			}
			line += fmt.Sprintf(" %d links, %x", file.Links, p)
		}
		found[file.Path] = line
		return nil
	})
	return found, err
}

// TestReadForeign reads what mke2fs makes, with all the features that it has by
// default, and in each block size.
func TestReadForeign(t *testing.T) {
	root := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("a/file", []byte("hello"))
	write("empty", nil)
	write("big", bytes.Repeat([]byte("0123456789abcdef"), 20000))
	for i := range 3000 { // a directory with an index
		write(fmt.Sprintf("many/a-rather-long-name-for-a-file-%d", i), nil)
	}
	for name, target := range map[string]string{"short": "a/file", "long": strings.Repeat("x/", 100)} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(root, "a/file"), filepath.Join(root, "hard")); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(root, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(300) { // a tree of extents
		if _, err := sparse.WriteAt([]byte{byte(i)}, i*64<<10); err != nil {
			t.Fatal(err)
		}
	}
	sparse.Close()
	want := map[string]string{"/lost+found": "40700 0:0"}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			line += " -> " + target
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d links, %x", st.Nlink, data)
		}
		want[strings.TrimPrefix(path, root)] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"-b 4096", "-b 1024", "-b 2048 -I 128", "-b 4096 -O ^64bit,^metadata_csum,^has_journal", "-b 4096 -O ^dir_index"} {
		t.Run(args, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			cmd := exec.Command("mke2fs", append(strings.Fields("-q -F -t ext4 -N 8192 "+args), "-d", root, image, "96M")...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := all(f, 96<<20)
			if err != nil {
				t.Fatal(err)
			}
			for name, line := range want {
				if got[name] != line {
					t.Errorf("%s: %.100q, want %.100q", name, got[name], line)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d names, want %d", len(got), len(want))
			}
		})
	}
}

// TestReadOwn reads what the Writer makes.
func TestReadOwn(t *testing.T) {
	f := newFile(t)
	w := NewWriter(f, Options{Bytes: 1 << 20})
	file, link, dir := w.Reserve(), w.Reserve(), w.Reserve()
	if err := w.AddFile(file, regular, 9000, []Data{{0, 5}, {8192, 9000}}, bytes.NewReader(bytes.Repeat([]byte("x"), 9000))); err != nil {
		t.Fatal(err)
	}
	if err := w.AddSpecial(link, Attributes{Mode: modeSymlink | 0o777, Links: 1, Target: strings.Repeat("t", 70)}); err != nil {
		t.Fatal(err)
	}
	if err := w.AddDir(dir, Root, directory, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.AddDir(Root, Root, directory, []Entry{{Name: "d", Inode: dir, Mode: modeDir}, {Name: "f", Inode: file, Mode: modeRegular}, {Name: "l", Inode: link, Mode: modeSymlink}}); err != nil {
		t.Fatal(err)
	}
	size := finish(t, w, f)
	got, err := all(f, size)
	if err != nil {
		t.Fatal(err)
	}
	content := append(append([]byte("xxxxx"), make([]byte, 8192-5)...), bytes.Repeat([]byte("x"), 9000-8192)...)
	want := map[string]string{
		"/d": "40755 0:0", "/f": fmt.Sprintf("100644 0:0 1 links, %x", content), "/l": "120777 0:0 -> " + strings.Repeat("t", 70),
	}
	for name, line := range want {
		if got[name] != line {
			t.Errorf("%s: %.100q, want %.100q", name, got[name], line)
		}
	}
}

func FuzzReader(f *testing.F) {
	image := filepath.Join(f.TempDir(), "image")
	root := f.TempDir()
	os.MkdirAll(root+"/d/e", 0o755)
	os.WriteFile(root+"/d/f", []byte("content"), 0o644)
	os.Symlink("d", root+"/l")
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-I", "128", "-N", "16", "-O", "^has_journal,^resize_inode", "-d", root, image, "256K").CombinedOutput(); err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := all(bytes.NewReader(data), int64(len(data)))
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), " has ") {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
