package snapshot_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// frame is how much is verified at once.
const frame = block.DefaultFrameSize

// big makes a snapshot whose memory is copied in many steps.
func big(t testing.TB, w world) *snapshot.Snapshot {
	t.Helper()
	const size = 8 << 20
	random := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	d, err := w.repo.NewDraft(t.Context(), uuid.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	disk, err := d.Disk(diskSize)
	if err == nil {
		err = disk.Write(0, pages(1, 100))
	}
	if err == nil {
		err = d.State([]byte("state"))
	}
	if err != nil {
		t.Fatal(err)
	}
	memory, err := d.Memory(size)
	if err == nil {
		err = memory.Write(0, random)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Commit(t.Context(), machine())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// counted returns the snapshots of a world, and how many bytes of their data files
// were read.
func counted(t testing.TB, w world) (*snapshot.Repo, *atomic.Int64) {
	t.Helper()
	st := &countingStore{Store: w.store}
	repo, err := snapshot.Open(st, w.cache)
	if err != nil {
		t.Fatal(err)
	}
	return repo, &st.read
}

type countingStore struct {
	store.Store
	read atomic.Int64
}

func (s *countingStore) Open(ctx context.Context, id uuid.UUID, artifact string) (store.Object, error) {
	o, err := s.Store.Open(ctx, id, artifact)
	if err == nil && (artifact == snapshot.DiskFile || artifact == snapshot.MemoryFile) {
		o = countingObject{o, &s.read}
	}
	return o, err
}

type countingObject struct {
	store.Object
	read *atomic.Int64
}

func (o countingObject) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.Object.ReadAt(p, off)
	o.read.Add(int64(n))
	return n, err
}

// partial is the folder that keeps what was copied of a snapshot; "" if there is none.
func partial(t testing.TB, w world, id uuid.UUID) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.root, ".partial", id.String()+".*"))
	if err != nil || len(found) > 1 {
		t.Fatalf("%v, %v", found, err)
	}
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// missing is how many bytes of the data files of some snapshots a store lacks, and
// how many it has of those that are not whole: all but a frame that was cut short.
func missing(t testing.TB, to world, all []*snapshot.Snapshot) (want, kept int64) {
	t.Helper()
	for _, s := range all {
		if _, err := os.Stat(filepath.Join(to.root, s.ID().String())); err == nil {
			continue
		}
		folder := partial(t, to, s.ID())
		for _, name := range []string{snapshot.DiskFile, snapshot.MemoryFile} {
			size := s.Metadata().Artifacts[name].Size
			want += size
			st, err := os.Stat(filepath.Join(folder, name))
			if folder == "" || err != nil {
				continue
			}
			there := st.Size()
			if there < size {
				there -= there % frame
			}
			want, kept = want-there, kept+there
		}
	}
	return want, kept
}

// nothingLeft wants nothing to be there that is not published.
func nothingLeft(t testing.TB, w world) {
	t.Helper()
	for _, folder := range []string{".drafts", ".partial"} {
		if left, _ := filepath.Glob(filepath.Join(w.root, folder, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// interrupted copies a snapshot to a new store, and is interrupted. It returns the
// folder with what is kept, of memory a megabyte at least.
func interrupted(t testing.TB, from world, s *snapshot.Snapshot) (to world, folder string) {
	t.Helper()
	to = newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := to.repo.CopyFrom(ctx, from.repo, s.ID(), func(done, _ int64) {
		if done >= 2<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if folder = partial(t, to, s.ID()); folder == "" {
		t.Fatal("nothing is kept")
	}
	if st, err := os.Stat(filepath.Join(folder, snapshot.MemoryFile)); err != nil || st.Size() < 1<<20 {
		t.Fatalf("%v, %v", st, err)
	}
	return to, folder
}

// TestCopyKeeps alters what an interrupted copy left: as much of it is used as is
// right, and the copy is right whatever there was.
func TestCopyKeeps(t *testing.T) {
	from := newWorld(t)
	s := big(t, from)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, make([]byte, 10*frame), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		alter func(path string) error
		kept  func(size int64) int64 // of as much as there is
	}{
		{"as it is", func(string) error { return nil }, func(size int64) int64 { return size }},
		{"a bit", func(path string) error { return patch(path, 3*frame+7, 1) }, func(int64) int64 { return 3 * frame }},
		{"the first byte", func(path string) error { return patch(path, 0, 1) }, func(int64) int64 { return 0 }},
		{"cut", func(path string) error { return os.Truncate(path, 5*frame+1) }, func(int64) int64 { return 5 * frame }},
		{"cut to nothing", func(path string) error { return os.Truncate(path, 0) }, func(int64) int64 { return 0 }},
		{"zeros behind", func(path string) error { return os.Truncate(path, 20<<20) }, func(size int64) int64 { return size }},
		{"gone", os.Remove, func(int64) int64 { return 0 }},
		{"a link", func(path string) error { return errors.Join(os.Remove(path), os.Symlink(outside, path)) }, func(int64) int64 { return 0 }},
		{"a folder", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, func(int64) int64 { return 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			to, folder := interrupted(t, from, s)
			path := filepath.Join(folder, snapshot.MemoryFile)
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			all, kept := missing(t, to, []*snapshot.Snapshot{s})
			kept -= st.Size()
			all += st.Size()
			if err := test.alter(path); err != nil {
				t.Fatal(err)
			}
			kept += test.kept(st.Size())
			all -= test.kept(st.Size())
			repo, read := counted(t, from)
			report, err := to.repo.CopyFrom(t.Context(), repo, s.ID(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if report.Kept != kept || read.Load() != all {
				t.Errorf("%d bytes were kept, want %d, and %d read, want %d", report.Kept, kept, read.Load(), all)
			}
			sameBytes(t, from, to, s.ID())
			nothingLeft(t, to)
			if got, err := os.ReadFile(outside); len(got) != 10*frame || err != nil {
				t.Errorf("%d bytes outside, %v", len(got), err)
			}
		})
	}
}

// patch flips bits of a byte.
func patch(path string, at int64, bits byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, 1)
	if _, err := f.ReadAt(p, at); err != nil {
		return err
	}
	p[0] ^= bits
	_, err = f.WriteAt(p, at)
	return err
}

// TestCopyKeepsOther has another snapshot of the same id be what an interrupted copy
// was of.
func TestCopyKeepsOther(t *testing.T) {
	from, other := newWorld(t), newWorld(t)
	s := big(t, from)
	other.add(t, s.ID(), nil, simple(5))
	to, folder := interrupted(t, from, s)
	report, err := to.repo.CopyFrom(t.Context(), other.repo, s.ID(), nil)
	if err != nil || report.Kept != 0 || len(report.Copied) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	sameBytes(t, other, to, s.ID())
	openWorld(t, to.root, to.cache)
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("what can't be published any more is still there: %v", err)
	}
}

// TestCopiesTogether has many copy one snapshot at once, of which a part is there.
func TestCopiesTogether(t *testing.T) {
	from := newWorld(t)
	s := big(t, from)
	to, _ := interrupted(t, from, s)
	var copied, kept atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		w := openWorld(t, to.root, to.cache)
		all.Go(func() {
			report, err := w.repo.CopyFrom(t.Context(), from.repo, s.ID(), nil)
			if err != nil || len(report.Copied)+len(report.Present) != 1 {
				t.Errorf("%+v, %v", report, err)
			}
			copied.Add(int64(len(report.Copied)))
			if report.Kept > 0 {
				kept.Add(1)
			}
		})
	}
	all.Wait()
	if copied.Load() != 1 || kept.Load() > 1 {
		t.Errorf("%d have copied it, %d gone on with what was there", copied.Load(), kept.Load())
	}
	sameBytes(t, from, to, s.ID())
	nothingLeft(t, to)
}

// TestGCKept collects what nobody went on with, once it is old.
func TestGCKept(t *testing.T) {
	from := newWorld(t)
	s := big(t, from)
	to, folder := interrupted(t, from, s)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	to = openWorld(t, to.root, to.cache)
	if infos, err := to.repo.List(t.Context(), func(id uuid.UUID, err error) { t.Errorf("%s: %v", id, err) }); len(infos) > 0 || err != nil {
		t.Errorf("listed %v, %v", infos, err)
	}
	for _, test := range []struct {
		grace  time.Duration
		remove bool
		want   int64
	}{{time.Hour, true, 0}, {-time.Hour, false, 0}, {-time.Hour, true, size}, {-time.Hour, true, 0}} {
		garbage, swept, err := to.repo.GC(t.Context(), test.grace, test.remove)
		if len(garbage) > 0 || swept != test.want || err != nil {
			t.Errorf("grace %v, remove %t: %v, swept %d bytes, want %d, %v", test.grace, test.remove, garbage, swept, test.want, err)
		}
	}
	nothingLeft(t, to)
	report, err := to.repo.CopyFrom(t.Context(), from.repo, s.ID(), nil)
	if err != nil || report.Kept != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}
