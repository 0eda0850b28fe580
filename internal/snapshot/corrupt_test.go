package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// artifacts are all files of a snapshot; data tells those whose damage shows when
// they are read, not when the snapshot is opened.
var artifacts = []struct {
	name string
	data bool
}{
	{snapshot.MetadataFile, false},
	{snapshot.DiskHeader, false},
	{snapshot.MemoryHeader, false},
	{snapshot.StateFile, true},
	{snapshot.DiskFile, true},
	{snapshot.MemoryFile, true},
}

// readEverything uses a snapshot in every way, and returns what failed. What did
// not fail has to be right.
func readEverything(t *testing.T, w world, id uuid.UUID, disk, memory []byte, state string) (using []error, opening error) {
	t.Helper()
	s, err := w.repo.OpenID(t.Context(), id)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for want, r := range map[*[]byte]*block.Reader{&disk: s.Disk(), &memory: s.Memory()} {
		got := make([]byte, page)
		for off := int64(0); off < r.Size(); off += page {
			if _, err := r.ReadAt(got, off); err != nil {
				using = append(using, err)
			} else if !bytes.Equal(got, (*want)[off:off+page]) {
				t.Errorf("wrong data at %d", off)
			}
		}
	}
	if got, err := s.State(t.Context()); err != nil {
		using = append(using, err)
	} else if string(got) != state {
		t.Error("wrong state")
	}
	if flat, err := w.repo.FlatMemory(t.Context(), s, nil); err != nil {
		using = append(using, err)
	} else {
		if got, err := os.ReadFile(flat.Name()); err != nil || !bytes.Equal(got, memory) {
			t.Errorf("wrong flat memory, %v", err)
		}
		flat.Close()
	}
	return using, nil
}

// TestDamage damages every artifact of a snapshot, and of its parent, in every
// way. No read gives wrong data, and the error names snapshot and artifact.
func TestDamage(t *testing.T) {
	type damage struct {
		name string
		do   func(t *testing.T, path, other string, size int64) bool // false: not for this file
	}
	damages := []damage{
		{"missing", func(t *testing.T, path, _ string, _ int64) bool {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return true
		}},
		{"emptied", func(t *testing.T, path, _ string, _ int64) bool { return truncate(t, path, 0) }},
		{"cut by a byte", func(t *testing.T, path, _ string, size int64) bool { return truncate(t, path, size-1) }},
		{"cut in half", func(t *testing.T, path, _ string, size int64) bool { return truncate(t, path, size/2) }},
		{"exchanged for another snapshot's", func(t *testing.T, path, other string, _ int64) bool {
			copyFile(t, other, path)
			return true
		}},
	}
	for _, at := range []struct {
		name string
		of   func(size int64) int64
	}{
		{"first", func(int64) int64 { return 0 }},
		{"middle", func(size int64) int64 { return size / 2 }},
		{"last", func(size int64) int64 { return size - 1 }},
	} {
		damages = append(damages, damage{at.name + " bit flipped", func(t *testing.T, path, _ string, size int64) bool {
			flip(t, path, at.of(size))
			return true
		}})
	}

	parent, id := simple(1), simple(5)
	parent.state, id.state = strings.Repeat("parent", 100), strings.Repeat("child", 100)
	disk := over(over(make([]byte, diskSize), parent.disk), map[int64][]byte{10 * page: pages(7, 2)})
	memory := over(over(make([]byte, memorySize), parent.memory), map[int64][]byte{10 * page: pages(8, 2)})
	id.disk, id.memory = map[int64][]byte{10 * page: pages(7, 2)}, map[int64][]byte{10 * page: pages(8, 2)}

	for _, victim := range []string{"own", "parent's"} {
		for _, a := range artifacts {
			if victim == "parent's" && a.name != snapshot.DiskFile && a.name != snapshot.MemoryFile {
				continue // the child reads nothing else of it
			}
			for _, d := range damages {
				t.Run(victim+" "+a.name+" "+d.name, func(t *testing.T) {
					w := newWorld(t)
					base := w.add(t, uuid.New(), nil, parent)
					s := w.add(t, uuid.New(), base, id)
					other := w.add(t, uuid.New(), base, simple(50))
					damaged := s.ID()
					if victim == "parent's" {
						damaged = base.ID()
					}
					path := w.file(damaged, a.name)
					st, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					if !d.do(t, path, w.file(other.ID(), a.name), st.Size()) {
						return
					}
					using, opening := readEverything(t, w, s.ID(), disk, memory, id.state)
					if !a.data {
						if len(using) > 0 {
							t.Fatalf("opened and failed later: %v", using)
						}
						names(t, opening, damaged, a.name)
					} else {
						if opening != nil || len(using) == 0 {
							t.Fatalf("opening: %v, using: %v", opening, using)
						}
						for _, err := range using {
							names(t, err, damaged, a.name)
						}
					}
					names(t, w.repo.Verify(t.Context(), s, nil), damaged, a.name)
					if left := below(t, w.cache); a.name == snapshot.MemoryFile && len(left) > 0 {
						t.Errorf("left in the cache: %v", left)
					}
				})
			}
		}
	}
}

func truncate(t *testing.T, path string, size int64) bool {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return true
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// names checks that err is of a type that says where the damage is, and that its
// message does too.
func names(t *testing.T, err error, id uuid.UUID, artifact string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	var whole *snapshot.CorruptError
	var frame *block.CorruptError
	switch {
	case errors.As(err, &whole):
		if whole.ID != id || whole.Artifact != artifact {
			t.Errorf("it is %s of %s that is damaged, not %s of %s", artifact, id, whole.Artifact, whole.ID)
		}
	case errors.As(err, &frame):
		if frame.Layer != id || !strings.HasPrefix(frame.Artifact, artifact+" of snapshot ") {
			t.Errorf("it is %s of %s that is damaged, not %s in the layer of %s", artifact, id, frame.Artifact, frame.Layer)
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("frame %d", frame.Frame)) {
			t.Errorf("error %q does not name frame %d", err, frame.Frame)
		}
	default:
		t.Errorf("error %v (%T) is of no type that names the damage", err, err)
	}
	for _, word := range []string{id.String(), artifact} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not speak of %s", err, word)
		}
	}
	if errors.Is(err, fs.ErrNotExist) != strings.Contains(t.Name(), "missing") {
		t.Errorf("error %v: is fs.ErrNotExist: %t", err, errors.Is(err, fs.ErrNotExist))
	}
}

// TestDamageWhileOpen finds what goes bad after a snapshot was opened.
func TestDamageWhileOpen(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	var done, total int64
	err := w.repo.Verify(t.Context(), s, func(d, of int64) { done, total = d, of })
	if err != nil || done != total || total != s.Disk().Header().Usage().Data()+s.Memory().Header().Usage().Data() {
		t.Errorf("verified %d of %d, %v", done, total, err)
	}
	flip(t, w.file(s.ID(), snapshot.StateFile), 3)
	_, err = s.State(t.Context())
	names(t, err, s.ID(), snapshot.StateFile)
	flip(t, w.file(s.ID(), snapshot.StateFile), 3)

	// Another snapshot of the same id: whole in itself, but not the one that is open.
	copied := newWorld(t)
	again, err := copied.make(t.Context(), s.ID(), nil, simple(2), machine())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, a := range artifacts {
		copyFile(t, copied.file(s.ID(), a.name), w.file(s.ID(), a.name))
	}
	err = w.repo.Verify(t.Context(), s, nil)
	names(t, err, s.ID(), snapshot.MetadataFile)
	for off := int64(0); off < s.Disk().Size(); off += page {
		if _, err := s.Disk().ReadAt(make([]byte, page), off); err != nil {
			names(t, err, s.ID(), snapshot.DiskFile)
			return
		}
	}
	t.Error("read another snapshot's disk")
}

// TestVerifyListsAll finds several damages at once.
func TestVerifyListsAll(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	flip(t, w.file(s.ID(), snapshot.DiskFile), 5)
	flip(t, w.file(s.ID(), snapshot.DiskFile), 150_000)
	flip(t, w.file(s.ID(), snapshot.MemoryFile), 5)
	err := w.repo.Verify(t.Context(), s, nil)
	for _, words := range []string{"rootfs.ext4 of snapshot", "memfile of snapshot", "frame 0", "frame 2"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v does not speak of %s", err, words)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.repo.Verify(ctx, s, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestVerifyProlonged finds bytes that belong to nothing. They hurt no reader.
func TestVerifyProlonged(t *testing.T) {
	w := newWorld(t)
	base := w.add(t, uuid.New(), nil, simple(1))
	s := w.add(t, uuid.New(), base, change{disk: map[int64][]byte{0: pages(2, 1)}})
	for _, id := range []uuid.UUID{s.ID(), base.ID()} {
		path := w.file(id, snapshot.DiskFile)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(whole, 0), 0o600); err != nil {
			t.Fatal(err)
		}
		names(t, w.repo.Verify(t.Context(), s, nil), id, snapshot.DiskFile)
		content(t, s.Disk())
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.repo.Verify(t.Context(), s, nil); err != nil {
		t.Error(err)
	}
}
