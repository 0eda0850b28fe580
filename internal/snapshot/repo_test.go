package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

func ids(infos []snapshot.Info) []uuid.UUID {
	var ids []uuid.UUID
	for _, i := range infos {
		ids = append(ids, i.ID)
	}
	return ids
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	var (
		a = uuid.MustParse("aaaa1111-0000-4000-8000-000000000001")
		b = uuid.MustParse("aaaa2222-0000-4000-8000-000000000002")
		c = uuid.MustParse("beef0000-0000-4000-8000-000000000003")
	)
	for i, id := range []uuid.UUID{a, b, c} {
		w.add(t, id, nil, change{disk: map[int64][]byte{0: pages(i, 1)}})
	}
	for name, id := range map[string]uuid.UUID{"python": a, "team/python:3.12": b, "beef": a} {
		if err := w.repo.Tag(t.Context(), name, id); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]uuid.UUID{
		a.String():                              a,
		strings.ToUpper(a.String()):             a,
		strings.ReplaceAll(a.String(), "-", ""): a,
		"aaaa1":                                 a,
		"AAAA1":                                 a,
		"aaaa2222-00":                           b,
		"python":                                a,
		"team/python:3.12":                      b,
		"beef":                                  a, // a name, before it is the beginning of an id
		"beef0":                                 c,
		c.String()[:35]:                         c,
		strings.ReplaceAll(b.String()[:20], "-", ""): b,
	} {
		id, err := w.repo.Resolve(t.Context(), ref)
		if err != nil || id != want {
			t.Errorf("%s means %s, %v; want %s", ref, id, err, want)
		}
		s, err := w.repo.Open(t.Context(), ref)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if s.ID() != want {
			t.Errorf("%s opens %s", ref, s.ID())
		}
		s.Close()
	}

	_, err := w.repo.Open(t.Context(), "aaaa")
	var ambiguous *snapshot.AmbiguousError
	if !errors.As(err, &ambiguous) || !slices.Equal(ambiguous.Candidates, []uuid.UUID{a, b}) {
		t.Errorf("got %v", err)
	} else if !strings.Contains(err.Error(), a.String()) || !strings.Contains(err.Error(), b.String()) {
		t.Errorf("error %q does not list them", err)
	}

	for ref, near := range map[string][]string{
		"pyton":                     {"python"},
		"pythn":                     {"python"},
		"team/python":               {"team/python:3.12"},
		"nothing-like-it":           nil,
		"aaa":                       nil, // too short for an id
		"bee":                       {"beef"},
		"":                          nil,
		"../../etc":                 nil,
		"aaaa3":                     nil,
		strings.Repeat("x", 10_000): nil,
		uuid.NewString():            nil,
	} {
		_, err := w.repo.Open(t.Context(), ref)
		var missing *snapshot.NotFoundError
		if !errors.As(err, &missing) || missing.Ref != ref {
			t.Errorf("%.20q: got %v", ref, err)
			continue
		}
		if diff := cmp.Diff(near, missing.Near); diff != "" {
			t.Errorf("%.20q: %s", ref, diff)
		}
		if len(near) > 0 && !strings.Contains(err.Error(), "did you mean "+near[0]) {
			t.Errorf("error %q", err)
		}
	}
}

func TestTags(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, change{})
	for _, name := range []string{"", "..", "a b", s.ID().String()} {
		if err := w.repo.Tag(t.Context(), name, s.ID()); !errors.Is(err, store.ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	var missing *snapshot.NotFoundError
	if err := w.repo.Tag(t.Context(), "x", uuid.New()); !errors.As(err, &missing) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"b", "a"} {
		if err := w.repo.Tag(t.Context(), name, s.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.repo.Untag(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	names, err := w.repo.Names(t.Context())
	if diff := cmp.Diff(map[string]uuid.UUID{"a": s.ID()}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestListSkipsBroken(t *testing.T) {
	w := newWorld(t)
	var all []uuid.UUID
	var parent *snapshot.Snapshot
	for i := range 12 {
		m := machine()
		m.Created = m.Created.Add(time.Duration(i) * time.Minute)
		m.Created = m.Created.In(time.FixedZone("elsewhere", 7200))
		s, err := w.make(t.Context(), uuid.New(), parent, change{disk: map[int64][]byte{int64(i) * page: pages(i, 1)}}, m)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if parent == nil || i == 1 {
			parent = s
		}
		all = append(all, s.ID())
	}
	for _, name := range []string{"b", "a/x"} {
		if err := w.repo.Tag(t.Context(), name, all[3]); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := w.repo.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, ids(infos)); diff != "" {
		t.Errorf("not oldest first: %s", diff)
	}
	if diff := cmp.Diff([]string{"a/x", "b"}, infos[3].Names); diff != "" {
		t.Error(diff)
	}
	if infos[2].Metadata.StoredBytes() < page || infos[2].Digest.IsZero() {
		t.Errorf("info %+v", infos[2])
	}

	// Break some, each in its way.
	want := map[uuid.UUID]bool{all[4]: true, all[6]: true, all[8]: true}
	if err := os.Truncate(w.file(all[4], snapshot.MetadataFile), 100); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.file(all[6], snapshot.MetadataFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	copyFile(t, w.file(all[9], snapshot.MetadataFile), w.file(all[8], snapshot.MetadataFile))
	if err := os.Remove(w.file(all[10], snapshot.MetadataFile)); err != nil { // not even a snapshot
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(w.root, uuid.NewString()), 0o700); err != nil {
		t.Fatal(err)
	}
	got := map[uuid.UUID]bool{}
	infos, err = w.repo.List(t.Context(), func(id uuid.UUID, err error) {
		got[id] = true
		var corrupt *snapshot.CorruptError
		if !errors.As(err, &corrupt) || corrupt.ID != id || corrupt.Artifact != snapshot.MetadataFile {
			t.Errorf("%s: %v", id, err)
		}
	})
	if err != nil || len(infos) != 8 {
		t.Errorf("listed %d, %v", len(infos), err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	build := func() (base, middle, leaf, free uuid.UUID) {
		t.Helper()
		var opened []*snapshot.Snapshot
		add := func(parent *snapshot.Snapshot, c change) *snapshot.Snapshot {
			s, err := w.make(t.Context(), uuid.New(), parent, c, machine())
			if err != nil {
				t.Fatal(err)
			}
			opened = append(opened, s)
			return s
		}
		b := add(nil, simple(1))
		m := add(b, change{disk: map[int64][]byte{page: pages(2, 1)}, memory: map[int64][]byte{page: pages(2, 1)}, state: "x"})
		l := add(m, change{disk: map[int64][]byte{2 * page: pages(3, 1)}})
		// It overwrites all that it could need.
		f := add(b, change{disk: map[int64][]byte{0: pages(9, diskSize/page)}, memory: map[int64][]byte{0: pages(8, memorySize/page)}, state: "x"})
		for _, s := range opened {
			s.Close()
		}
		return b.ID(), m.ID(), l.ID(), f.ID()
	}

	base, middle, leaf, free := build()
	var needed *snapshot.DependentsError
	if removed, err := w.repo.Remove(t.Context(), base, false); !errors.As(err, &needed) || len(needed.Dependents) != 2 || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	} else if !strings.Contains(err.Error(), middle.String()) || !strings.Contains(err.Error(), leaf.String()) {
		t.Errorf("error %q does not name them", err)
	}
	for _, id := range []uuid.UUID{leaf, middle, base} {
		if removed, err := w.repo.Remove(t.Context(), id, false); err != nil || !slices.Equal(removed, []uuid.UUID{id}) {
			t.Errorf("removed %v, %v", removed, err)
		}
	}
	s, err := w.repo.OpenID(t.Context(), free)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Verify(t.Context(), s, nil); err != nil {
		t.Errorf("a child that needs nothing of its parent: %v", err)
	}
	s.Close()

	base, middle, leaf, _ = build()
	if err := w.repo.Tag(t.Context(), "leaf", leaf); err != nil {
		t.Fatal(err)
	}
	inUse, err := w.repo.OpenID(t.Context(), middle)
	if err != nil {
		t.Fatal(err)
	}
	flat, err := w.repo.FlatMemory(t.Context(), inUse, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The leaf goes, the middle can't, so the base stays too.
	if removed, err := w.repo.Remove(t.Context(), base, true); !errors.Is(err, store.ErrInUse) || !slices.Equal(removed, []uuid.UUID{leaf}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if err := w.repo.Verify(t.Context(), inUse, nil); err != nil {
		t.Error(err)
	}
	flat.Close()
	inUse.Close()
	if removed, err := w.repo.Remove(t.Context(), base, true); err != nil || !slices.Equal(removed, []uuid.UUID{middle, base}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if left := below(t, w.cache); len(left) > 0 {
		t.Errorf("the memory of what is removed is still in the cache: %v", left)
	}
	names, err := w.repo.Names(t.Context())
	if err != nil || len(names) > 0 {
		t.Errorf("names %v, %v", names, err)
	}
	var missing *snapshot.NotFoundError
	if _, err := w.repo.Remove(t.Context(), base, true); !errors.As(err, &missing) {
		t.Errorf("got %v", err)
	}
}

// TestRemoveUnknown keeps what a snapshot may need that can't be read, though not what a damaged one needed.
func TestRemoveUnknown(t *testing.T) {
	w := newWorld(t)
	parent := w.add(t, uuid.New(), nil, simple(1))
	child := w.add(t, uuid.New(), parent, simple(2))
	parent.Close()
	child.Close()
	path := w.file(child.ID(), snapshot.MetadataFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(string(good), ",\n  \"check\"")
	newer := reseal(t, strings.Replace(body, `"version": 1,`, `"version": 99,`, 1)+"\n}\n")
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	gone, err := w.repo.Remove(t.Context(), parent.ID(), true)
	if err == nil || len(gone) > 0 || !strings.Contains(err.Error(), "nothing can be removed while a snapshot can't be read") {
		t.Errorf("beside a snapshot of a newer version: removed %v, %v", gone, err)
	}
	if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.repo.Remove(t.Context(), parent.ID(), false); err != nil {
		t.Errorf("beside a damaged snapshot: %v", err)
	}
}

// TestRemoveBroken removes what can't be opened any more.
func TestRemoveBroken(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, uuid.New(), nil, simple(1))
	s.Close()
	if err := os.Truncate(w.file(s.ID(), snapshot.MetadataFile), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := w.repo.Remove(t.Context(), s.ID(), false); err != nil {
		t.Error(err)
	}
	if left := below(t, w.root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenCacheErrors(t *testing.T) {
	w := newWorld(t)
	if _, err := snapshot.Open(w.store, ""); err == nil {
		t.Error("opened a cache without a directory")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Open(w.store, file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("opened a file as a cache: %v", err)
	}
}
