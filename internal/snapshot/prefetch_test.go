package snapshot_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

func list(pages ...int64) snapshot.Pages {
	var p snapshot.Pages
	for _, page := range pages {
		p.Add(page)
	}
	return p
}

func drawPages(t *rapid.T, name string) snapshot.Pages {
	return list(rapid.SliceOfN(rapid.Int64Range(0, 300), 0, 60).Draw(t, name)...)
}

func TestPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawPages(t, "a"), drawPages(t, "b")
		if got, err := snapshot.DecodePages(snapshot.EncodePages(a)); err != nil || !slices.Equal(slices.Collect(got.All()), slices.Collect(a.All())) {
			t.Fatalf("%v became %v, %v", a, got, err)
		}
		both, other := slices.Collect(a.And(b).All()), slices.Collect(b.All())
		want := slices.DeleteFunc(slices.Collect(a.All()), func(page int64) bool { return !slices.Contains(other, page) })
		if !slices.Equal(both, want) {
			t.Fatalf("%v and %v are %v", a, b, both)
		}
		if a.Len() != int64(len(slices.Collect(a.All()))) {
			t.Fatalf("%v has %d pages", a, a.Len())
		}
	})
}

// TestPagesGolden holds version 1 of the format to its bytes.
func TestPagesGolden(t *testing.T) {
	testGolden(t, "memfile.prefetch", list(7, 8, 9, 1000, 1001, 3, 4, 5, 6, 131071))
}

func testGolden(t *testing.T, name string, p snapshot.Pages) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, snapshot.EncodePages(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshot.EncodePages(p), golden) {
		t.Error("it is encoded in another way: that needs a new version")
	}
	if got, err := snapshot.DecodePages(golden); err != nil || !slices.Equal(got, p) {
		t.Errorf("read %v, %v", got, err)
	}
}

// TestPagesLimit lists more than an attachment holds: what comes first is kept.
func TestPagesLimit(t *testing.T) {
	var many snapshot.Pages
	for i := range int64(100_000) {
		many.Add(i * 7919 % 100_003)
	}
	for name, p := range map[string]snapshot.Pages{"runs": many, "pages": {{First: 5, Count: 1 << 19}, {First: 1 << 20, Count: 1 << 19}, {First: 0, Count: 1}}} {
		data := snapshot.EncodePages(p)
		if len(data) > store.MaxAttachment {
			t.Errorf("%s: %d bytes", name, len(data))
		}
		got, err := snapshot.DecodePages(data)
		if err != nil || len(got) == 0 || len(got) >= len(p) || !slices.Equal(got, p[:len(got)]) {
			t.Errorf("%s: %d of %d runs, %v", name, len(got), len(p), err)
		}
	}
}

func head(version, size uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32([]byte("sporepre"), version), size)
}

func TestPagesHostile(t *testing.T) {
	run := func(distance int64, less uint64) []byte {
		return binary.AppendUvarint(binary.AppendVarint(head(1, 4096), distance), less)
	}
	for name, data := range map[string][]byte{
		"nothing":         nil,
		"something else":  []byte("sporehdr01234567"),
		"version":         head(2, 4096),
		"page size":       head(1, 512),
		"before memory":   run(-1, 0),
		"behind memory":   run(block.MaxSize/4096, 0),
		"far behind":      run(1<<62, 0),
		"too many":        run(0, 1<<20),
		"count overflows": run(0, 1<<63),
		"cut":             run(5, 300)[:len(run(5, 300))-1],
		"distance cut":    append(head(1, 4096), 0x80),
		"endless number":  append(head(1, 4096), bytes.Repeat([]byte{0xff}, 30)...),
		"long":            append(head(1, 4096), make([]byte, store.MaxAttachment)...),
	} {
		if p, err := snapshot.DecodePages(data); err == nil {
			t.Errorf("%s: read %v", name, p)
		}
	}
}

func FuzzPages(f *testing.F) {
	f.Add(snapshot.EncodePages(list(1, 2, 3, 900, 5)))
	f.Add(head(1, 4096))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := snapshot.DecodePages(data)
		if err != nil {
			return
		}
		if p.Len() > 1<<20 {
			t.Fatalf("%d pages", p.Len())
		}
		again, err := snapshot.DecodePages(snapshot.EncodePages(p))
		if err != nil || !slices.Equal(again, p) {
			t.Fatalf("%v became %v, %v", p, again, err)
		}
	})
}

// TestPrefetchIsInherited gives the child of a machine its parent's list, and a machine that was booted anew none.
func TestPrefetchIsInherited(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	want := list(9, 3, 4)
	if err := w.repo.SetPrefetch(t.Context(), s.ID(), want); err != nil {
		t.Fatal(err)
	}
	child := w.add(t, uuid.New(), s, simple(2))
	grandchild := w.add(t, uuid.New(), child, simple(3))
	for _, id := range []uuid.UUID{child.ID(), grandchild.ID()} {
		if got, err := w.repo.Prefetch(t.Context(), id); err != nil || !slices.Equal(got, want) {
			t.Errorf("the list of %s is %v, %v", id, got, err)
		}
	}
	d, err := w.repo.NewDraft(t.Context(), uuid.New(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	if _, err := d.FreshMemory(memorySize); err != nil {
		t.Fatal(err)
	}
	if err := d.State([]byte("booted")); err != nil {
		t.Fatal(err)
	}
	booted, err := d.Commit(t.Context(), machine())
	if err != nil {
		t.Fatal(err)
	}
	defer booted.Close()
	if got, err := w.repo.Prefetch(t.Context(), booted.ID()); err != nil || got != nil {
		t.Errorf("the list of what was booted is %v, %v", got, err)
	}
}

// TestPrefetchGoesAlong keeps a list through a copy, an import's files and a squash.
func TestPrefetchGoesAlong(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	if p, err := w.repo.Prefetch(t.Context(), s.ID()); p != nil || err != nil {
		t.Errorf("a list from nowhere: %v, %v", p, err)
	}
	want := list(9, 3, 4)
	if err := w.repo.SetPrefetch(t.Context(), s.ID(), want); err != nil {
		t.Fatal(err)
	}
	if names, err := w.repo.Artifacts(t.Context(), s.ID()); err != nil || !slices.Contains(names, snapshot.PrefetchFile) {
		t.Errorf("the files are %v, %v", names, err)
	}
	if _, err := other.repo.CopyFrom(t.Context(), w.repo, s.ID(), nil); err != nil {
		t.Fatal(err)
	}
	flat, err := other.repo.Squash(t.Context(), uuid.New(), s, block.Plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer flat.Close()
	for _, id := range []uuid.UUID{s.ID(), flat.ID()} {
		if got, err := other.repo.Prefetch(t.Context(), id); err != nil || !slices.Equal(got, want) {
			t.Errorf("the list of %s is %v, %v", id, got, err)
		}
	}
	if err := w.repo.Verify(t.Context(), s, nil); err != nil {
		t.Error(err)
	}
	// A damaged one is told, keeps nothing from working, and is not passed on.
	if err := os.WriteFile(w.file(s.ID(), snapshot.PrefetchFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *snapshot.CorruptError
	if p, err := w.repo.Prefetch(t.Context(), s.ID()); !errors.As(err, &damage) {
		t.Errorf("read %v, %v", p, err)
	}
	if names, err := w.repo.Artifacts(t.Context(), s.ID()); err != nil || slices.Contains(names, snapshot.PrefetchFile) {
		t.Errorf("the files are %v, %v", names, err)
	}
	if err := other.repo.AttachPrefetch(t.Context(), s.ID(), []byte("rubbish")); !errors.As(err, &damage) {
		t.Errorf("attached: %v", err)
	}
	again, err := w.repo.OpenID(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
