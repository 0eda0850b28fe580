package compare_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/compare"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

const diskSize = 16 << 20

func newRepo(t testing.TB) *snapshot.Repo {
	t.Helper()
	dir := t.TempDir()
	st, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := snapshot.Open(st, filepath.Join(dir, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// image makes a file system of a folder.
func image(t testing.TB, root string) []byte { return imageOf(t, root, diskSize) }

func imageOf(t testing.TB, root string, size int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", "11111111-1111-4111-8111-111111111111", "-d", root, path, fmt.Sprintf("%dM", size>>20)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// add makes a snapshot with a disk, of which a child stores what differs.
func add(t testing.TB, repo *snapshot.Repo, parent *snapshot.Snapshot, disk []byte, m snapshot.Metadata) *snapshot.Snapshot {
	t.Helper()
	m.Kind, m.Arch = snapshot.KindMachine, "amd64"
	d, err := repo.NewDraft(t.Context(), uuid.New(), parent)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	w, err := d.Disk(int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	old := make([]byte, len(disk))
	if parent != nil {
		if _, err := parent.Disk().ReadAt(old, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteChanged(0, disk, old); err != nil {
		t.Fatal(err)
	}
	s, err := d.Commit(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFiles(t *testing.T) {
	root := t.TempDir()
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-euc", script)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	run(`umask 022; mkdir d e; echo one >d/one; echo two >two; ln -s two link; ln two hard; head -c 300000 /dev/zero | tr '\0' x >big; echo bye >gone; echo t >touched; echo k >kind; truncate -s 1M sparse`)
	before := image(t, root)
	run(`echo ONE >d/one; rm gone; echo new >e/new; mkdir e/sub; ln -sfn one link; chmod 600 two; touch -d 2001-01-01 touched; rm kind; mkdir kind; printf y | dd of=big bs=1 seek=250000 conv=notrunc 2>/dev/null; printf z | dd of=sparse bs=1 seek=500000 conv=notrunc 2>/dev/null`)
	after := image(t, root)
	repo := newRepo(t)
	a := add(t, repo, nil, before, snapshot.Metadata{VCPUs: 1, Processes: []snapshot.Process{{PID: 2, Command: "stays"}, {PID: 3, Command: "goes"}}})
	b := add(t, repo, a, after, snapshot.Metadata{VCPUs: 2, Processes: []snapshot.Process{{PID: 2, Command: "stays"}, {PID: 4, Command: "comes"}}})
	got, err := compare.Snapshots(t.Context(), a, b, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	file := func(path string, c compare.Change, kind string, before, after int64, what ...string) compare.File {
		return compare.File{Path: path, Change: c, Type: kind, SizeA: before, SizeB: after, What: what}
	}
	want := []compare.File{
		file("/big", compare.Changed, "file", 300000, 300000, "content"),
		file("/d/one", compare.Changed, "file", 4, 4, "content"),
		file("/e/new", compare.Added, "file", 0, 4),
		file("/e/sub", compare.Added, "dir", 0, 0),
		file("/gone", compare.Removed, "file", 4, 0),
		file("/hard", compare.Changed, "file", 4, 4, "mode"),
		file("/kind", compare.Changed, "dir", 2, 0, "type"),
		file("/link", compare.Changed, "symlink", 3, 3, "target"),
		file("/sparse", compare.Changed, "file", 1<<20, 1<<20, "content"),
		file("/two", compare.Changed, "file", 4, 4, "mode"),
	}
	if diff := cmp.Diff(want, got.Files); diff != "" {
		t.Error(diff)
	}
	processes := []compare.ProcessChange{{compare.Removed, snapshot.Process{PID: 3, Command: "goes"}}, {compare.Added, snapshot.Process{PID: 4, Command: "comes"}}}
	if diff := cmp.Diff(processes, got.Processes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]compare.MetadataChange{{"vcpus", "1", "2"}}, got.Metadata); diff != "" {
		t.Error(diff)
	}
	if got.Memory != nil || got.Disk.Changed == 0 || got.Disk.Changed > 2<<20 {
		t.Errorf("memory %v, %d bytes of disk stored anew", got.Memory, got.Disk.Changed)
	}
	// The other way round, and with itself.
	back, err := compare.Snapshots(t.Context(), b, a, compare.Options{})
	if err != nil || len(back.Files) != len(want) {
		t.Errorf("back: %d files, %v", len(back.Files), err)
	}
	same, err := compare.Snapshots(t.Context(), b, b, compare.Options{})
	if err != nil || len(same.Files) != 0 || same.Disk.Changed != 0 || len(same.Processes) != 0 {
		t.Errorf("with itself: %+v, %v", same, err)
	}
	// Without common ancestors all is stored anew, and the files are as different.
	alone := add(t, repo, nil, after, snapshot.Metadata{VCPUs: 2})
	other, err := compare.Snapshots(t.Context(), a, alone, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, other.Files); diff != "" {
		t.Error(diff)
	}
	// So they are where one disk can't be laid over the other, which is told, or an error for whoever wants the runs.
	large := add(t, repo, nil, imageOf(t, root, 2*diskSize), snapshot.Metadata{VCPUs: 2})
	shrunk, err := compare.Snapshots(t.Context(), large, a, compare.Options{})
	if err != nil || shrunk.Disk != nil || len(shrunk.Notes) != 1 || len(shrunk.Files) != len(want) {
		t.Errorf("onto a smaller disk: %+v, %v", shrunk, err)
	}
	if _, err := compare.Snapshots(t.Context(), large, a, compare.Options{MustFit: true}); !errors.Is(err, block.ErrHeader) {
		t.Errorf("onto a smaller disk, runs wanted: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := compare.Snapshots(ctx, a, b, compare.Options{}); err == nil {
		t.Error("compared under a dead context")
	}
}

// TestMetadata names each entry of a map that differs, and no other.
func TestMetadata(t *testing.T) {
	repo, disk := newRepo(t), image(t, t.TempDir())
	a := add(t, repo, nil, disk, snapshot.Metadata{
		Labels: map[string]string{"team": "moss", "same": "x", "gone": "1"}, Cmd: []string{"run", "a b"},
		Context: snapshot.Context{Env: map[string]string{"PATH": "/bin", "LANG": "C"}},
	})
	b := add(t, repo, a, disk, snapshot.Metadata{
		Labels: map[string]string{"team": "fern", "same": "x", "new": "2"}, Cmd: []string{"run", "a", "b"},
		Context: snapshot.Context{Env: map[string]string{"PATH": "/bin:/sbin", "LANG": "C"}},
	})
	got, err := compare.Snapshots(t.Context(), a, b, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []compare.MetadataChange{
		{Field: "env.PATH", A: "/bin", B: "/bin:/sbin"}, {Field: "cmd", A: `"run" "a b"`, B: `"run" "a" "b"`},
		{Field: "label.gone", A: "1"}, {Field: "label.new", B: "2"}, {Field: "label.team", A: "moss", B: "fern"},
	}
	if diff := cmp.Diff(want, got.Metadata); diff != "" {
		t.Error(diff)
	}
}

// TestHeaders holds the regions of a comparison against the bytes: outside of them
// two images are equal.
func TestHeaders(t *testing.T) {
	const blocks, size = 64, 64 * block.DefaultBlockSize
	rapid.Check(t, func(t *rapid.T) {
		write := func(base *block.Header, label string) (*block.Header, []byte) {
			id := uuid.New()
			var out bytes.Buffer
			w := block.NewWriter(&out, id, block.WriterOptions{Size: size})
			defer w.Abort()
			changed := make([]byte, blocks)
			for i := int64(0); i < blocks; i++ {
				switch rapid.IntRange(0, 5).Draw(t, fmt.Sprintf("%s %d", label, i)) {
				case 0:
					if err := w.Write(i*block.DefaultBlockSize, bytes.Repeat([]byte{byte(i + 1)}, block.DefaultBlockSize)); err != nil {
						t.Fatal(err)
					}
					changed[i] = 1
				case 1:
					if err := w.Zero(i*block.DefaultBlockSize, block.DefaultBlockSize); err != nil {
						t.Fatal(err)
					}
					changed[i] = 2
				}
			}
			h, _, err := w.Finish(base)
			if err != nil {
				t.Fatal(err)
			}
			return h, changed
		}
		base, first := write(nil, "base")
		to, changed := write(base, "to")
		i, err := compare.Headers(base, to, compare.Options{})
		if err != nil {
			t.Fatal(err)
		}
		covered := make([]bool, blocks)
		last := int64(size + 1)
		for _, r := range i.Regions {
			if r.Length > last {
				t.Fatal("not largest first")
			}
			last = r.Length
			for n := range r.Length / block.DefaultBlockSize {
				covered[r.Offset/block.DefaultBlockSize+n] = true
			}
		}
		for n, c := range changed {
			want := c == 1 || c == 2 && first[n] == 1 // a hole that was one is no change
			if covered[n] != want {
				t.Fatalf("block %d was changed as %d, covered %t", n, c, covered[n])
			}
		}
		if d := cmp.Diff(to.Runs, i.Merged.Runs); d != "" {
			t.Fatal(d)
		}
	})
}
