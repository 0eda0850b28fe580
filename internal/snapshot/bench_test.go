package snapshot_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// BenchmarkOpen opens the last of a chain of generations.
func BenchmarkOpen(b *testing.B) {
	for _, depth := range []int{1, 100} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			w := newWorld(b)
			var parent *snapshot.Snapshot
			for i := range depth {
				c := change{disk: map[int64][]byte{int64(i) * page: pages(i, 1)}, memory: map[int64][]byte{int64(i) * page: pages(i, 1)}, state: "x"}
				parent = w.add(b, uuid.New(), parent, c)
			}
			reads := 0
			for b.Loop() {
				s, err := w.repo.OpenID(b.Context(), parent.ID())
				if err != nil {
					b.Fatal(err)
				}
				reads = s.OpenReads()
				s.Close()
			}
			b.ReportMetric(float64(reads), "reads/op")
		})
	}
}

// BenchmarkFlatMemory asks for a flat memory file that is there.
func BenchmarkFlatMemory(b *testing.B) {
	w := newWorld(b)
	s := w.add(b, uuid.New(), nil, simple(1))
	for b.Loop() {
		f, err := w.repo.FlatMemory(b.Context(), s, nil)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkCommit publishes a small child: what a pause pays for durability.
func BenchmarkCommit(b *testing.B) {
	w := newWorld(b)
	base := w.add(b, uuid.New(), nil, simple(1))
	for b.Loop() {
		s, err := w.make(b.Context(), uuid.New(), base, simple(2), machine())
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkList lists two hundred snapshots.
func BenchmarkList(b *testing.B) {
	w := newWorld(b)
	for range 200 {
		w.add(b, uuid.New(), nil, change{}).Close()
	}
	for b.Loop() {
		infos, err := w.repo.List(b.Context(), nil)
		if err != nil || len(infos) != 200 {
			b.Fatal(len(infos), err)
		}
	}
}
