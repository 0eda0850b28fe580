package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// TestChain makes a hundred generations and reads the last, as it was made and as
// it is opened.
func TestChain(t *testing.T) {
	w := newWorld(t)
	disk, memory := make([]byte, diskSize), make([]byte, memorySize)
	var parent *snapshot.Snapshot
	reads := map[int]int{}
	for i := range 100 {
		c := change{
			disk:   map[int64][]byte{int64(i*5) * page: pages(i, 7)},
			memory: map[int64][]byte{int64(i*2) * page: pages(i+1, 3), 240 * page: pages(i, 1)},
			state:  "state",
		}
		if i%3 == 1 { // zeros hide the parent's data
			c.memory[int64(i*2)*page] = make([]byte, 2*page)
		}
		disk, memory = over(disk, c.disk), over(memory, c.memory)
		s := w.add(t, uuid.New(), parent, c)
		opened, err := w.repo.OpenID(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		reads[opened.OpenReads()]++
		if diff := cmp.Diff(s.Metadata(), opened.Metadata()); diff != "" || opened.Digest() != s.Digest() {
			t.Fatalf("opened as another than it was made: %s", diff)
		}
		if g := opened.Metadata().Generation; int(g) != i || opened.Disk().Header().Generation != g {
			t.Errorf("generation %d of %d", g, i)
		}
		for name, pair := range map[string][2]any{"disk": {disk, opened.Disk()}, "memory": {memory, s.Memory()}} {
			if i%20 == 19 && !bytes.Equal(content(t, pair[1].(*block.Reader)), pair[0].([]byte)) {
				t.Errorf("generation %d: its %s is not what was written", i, name)
			}
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
		parent = s
	}
	if diff := cmp.Diff(map[int]int{3: 100}, reads); diff != "" {
		t.Errorf("reads to open a snapshot: %s", diff)
	}
	if err := w.repo.Verify(t.Context(), parent, nil); err != nil {
		t.Error(err)
	}
}

// TestInherit makes children that change nothing of one image, or start it anew.
func TestInherit(t *testing.T) {
	w := newWorld(t)
	base := w.add(t, uuid.New(), nil, simple(1))
	commit := func(d *snapshot.Draft) *snapshot.Snapshot {
		t.Helper()
		s, err := d.Commit(t.Context(), machine())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	draft := func() *snapshot.Draft {
		t.Helper()
		d, err := w.repo.NewDraft(t.Context(), uuid.New(), base)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := draft()
	if err := d.State([]byte("new state")); err != nil {
		t.Fatal(err)
	}
	same := commit(d)
	if !bytes.Equal(content(t, same.Disk()), content(t, base.Disk())) || !bytes.Equal(content(t, same.Memory()), content(t, base.Memory())) {
		t.Error("what was not written is not the parent's")
	}
	if state, err := same.State(t.Context()); err != nil || string(state) != "new state" {
		t.Errorf("state %q, %v", state, err)
	}
	if diff := cmp.Diff([]uuid.UUID{base.ID()}, same.Metadata().Layers); diff != "" {
		t.Error(diff)
	}

	disk := commit(draft())
	if disk.Memory() != nil || disk.Metadata().HasMemory() {
		t.Error("a disk alone has a memory")
	}
	if _, err := disk.State(t.Context()); err == nil || !strings.Contains(err.Error(), "disk alone") {
		t.Errorf("its state: %v", err)
	}
	if _, err := w.repo.FlatMemory(t.Context(), disk, nil); err == nil {
		t.Error("its memory was laid out")
	}

	d = draft()
	d.MemoryBlockSize, d.Codec = 2<<20, block.Zstd
	fresh, err := d.FreshMemory(4 << 20) // booted, with more memory
	if err != nil {
		t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte("abcd"), 512<<10), make([]byte, 2<<20)...)
	if err := fresh.Write(0, want); err != nil {
		t.Fatal(err)
	}
	freshDisk, err := d.FreshDisk(2 * diskSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := freshDisk.Write(0, pages(9, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.State([]byte("booted")); err != nil {
		t.Fatal(err)
	}
	booted := commit(d)
	if !bytes.Equal(content(t, booted.Memory()), want) || booted.Metadata().Artifacts[snapshot.MemoryFile].Size > 1<<20 {
		t.Errorf("fresh memory, %d bytes stored", booted.Metadata().Artifacts[snapshot.MemoryFile].Size)
	}
	if !bytes.Equal(content(t, booted.Disk()), over(make([]byte, 2*diskSize), map[int64][]byte{0: pages(9, 1)})) {
		t.Error("the fresh disk is not what was written")
	}
	m := booted.Metadata()
	if len(m.Layers) != 0 || m.Parent != base.ID() || m.DiskBytes != 2*diskSize || m.MemoryBytes != 4<<20 {
		t.Errorf("layers %v, parent %s, %d + %d bytes", m.Layers, m.Parent, m.DiskBytes, m.MemoryBytes)
	}
	for _, s := range []*snapshot.Snapshot{same, disk, booted} {
		if err := w.repo.Verify(t.Context(), s, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestDraftMisuse uses drafts wrongly: the error tells, nothing is published and
// nothing is left.
func TestDraftMisuse(t *testing.T) {
	w := newWorld(t)
	base := w.add(t, uuid.New(), nil, simple(1))
	before := below(t, w.root)
	write := func(t *testing.T, d *snapshot.Draft) {
		disk, err := d.Disk(diskSize)
		if err == nil {
			err = disk.Write(0, pages(1, 300)) // still on its way in the background when the draft ends
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		parent *snapshot.Snapshot
		use    func(t *testing.T, d *snapshot.Draft) error // nil: commit shall fail
		meta   func(m *snapshot.Metadata)
		want   string
	}{
		{name: "no disk", use: nil, want: "no disk"},
		{name: "disk twice", parent: base, use: func(t *testing.T, d *snapshot.Draft) error {
			write(t, d)
			_, err := d.Disk(diskSize)
			return err
		}, want: "rootfs.ext4 is begun already"},
		{name: "memory of another size", parent: base, use: func(t *testing.T, d *snapshot.Draft) error {
			_, err := d.Memory(2 * memorySize)
			return err
		}, want: "can't be based on"},
		{name: "state twice", parent: base, use: func(t *testing.T, d *snapshot.Draft) error {
			if err := d.State([]byte("x")); err != nil {
				t.Fatal(err)
			}
			return d.State([]byte("x"))
		}, want: "snapfile is there already"},
		{name: "empty state", parent: base, use: func(t *testing.T, d *snapshot.Draft) error { return d.State(nil) }, want: "0 bytes"},
		{name: "absurd disk", parent: base, use: func(t *testing.T, d *snapshot.Draft) error {
			disk, err := d.Disk(-1)
			if err != nil {
				return err
			}
			return disk.Write(0, nil)
		}, want: "size -1"},
		{name: "smaller disk", parent: base, use: func(t *testing.T, d *snapshot.Draft) error {
			_, err := d.Disk(diskSize - page)
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.Commit(t.Context(), machine())
			return err
		}, want: "rootfs.ext4"},
		{name: "memory without state", use: func(t *testing.T, d *snapshot.Draft) error {
			write(t, d)
			if _, err := d.Memory(memorySize); err != nil {
				t.Fatal(err)
			}
			_, err := d.Commit(t.Context(), machine())
			return err
		}, want: "come together"},
		{name: "state without memory", use: func(t *testing.T, d *snapshot.Draft) error {
			write(t, d)
			if err := d.State([]byte("x")); err != nil {
				t.Fatal(err)
			}
			_, err := d.Commit(t.Context(), machine())
			return err
		}, want: "come together"},
		{name: "bad metadata", parent: base, meta: func(m *snapshot.Metadata) { m.Kind = "odd" }, want: "odd"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id := uuid.New()
			d, err := w.repo.NewDraft(t.Context(), id, test.parent)
			if err != nil {
				t.Fatal(err)
			}
			if test.use != nil {
				err = test.use(t, d)
			} else {
				m := machine()
				if test.meta != nil {
					test.meta(&m)
				}
				_, err = d.Commit(t.Context(), m)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a word of %q", err, test.want)
			}
			for range 2 {
				if err := d.Abort(); err != nil {
					t.Error(err)
				}
			}
			if _, err := d.Commit(t.Context(), machine()); !errors.Is(err, store.ErrOver) {
				t.Errorf("committing when it is over: %v", err)
			}
			if diff := cmp.Diff(before, below(t, w.root)); diff != "" {
				t.Errorf("left: %s", diff)
			}
		})
	}
}

func TestDraftIDTaken(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	if _, err := w.repo.NewDraft(t.Context(), s.ID(), nil); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), s.ID().String()) {
		t.Errorf("got %v", err)
	}
	id := uuid.New()
	d, err := w.repo.NewDraft(t.Context(), id, s)
	if err != nil {
		t.Fatal(err)
	}
	winner := w.add(t, id, nil, simple(2))
	if _, err := d.Commit(t.Context(), machine()); !errors.Is(err, store.ErrExist) {
		t.Errorf("got %v", err)
	}
	if err := w.repo.Verify(t.Context(), winner, nil); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.root, ".drafts", "*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestDraftKeepsParent removes the parent while a child is being made.
func TestDraftKeepsParent(t *testing.T) {
	w := newWorld(t)
	base, err := w.make(t.Context(), uuid.New(), nil, simple(1), machine())
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.repo.NewDraft(t.Context(), uuid.New(), base)
	if err != nil {
		t.Fatal(err)
	}
	if err := base.Close(); err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		if _, err := w.repo.Remove(t.Context(), base.ID(), force); !errors.Is(err, store.ErrInUse) {
			t.Errorf("force %t: %v", force, err)
		}
	}
	s, err := d.Commit(t.Context(), machine())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := w.repo.Verify(t.Context(), s, nil); err != nil {
		t.Error(err)
	}
}

func TestDraftCancelled(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := w.repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Disk(diskSize); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := d.Commit(ctx, machine()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := below(t, w.root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
