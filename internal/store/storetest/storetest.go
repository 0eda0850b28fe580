// Package storetest is the contract of store.Store as tests. Every kind of store
// passes it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

// Run holds a kind of store to the contract. open is called once for each test and
// returns an empty store; reopen opens the same store again, as another process
// would.
func Run(t *testing.T, open func(t *testing.T) (st store.Store, reopen func() store.Store)) {
	tests := []struct {
		name string
		run  func(t *testing.T, st store.Store, reopen func() store.Store)
	}{
		{"publish and read", publishAndRead},
		{"nothing shows before commit", invisible},
		{"abort", abort},
		{"rules of drafts", draftRules},
		{"one id, one snapshot", oneID},
		{"commit under a dead context", deadContext},
		{"what is not there", notThere},
		{"bad names", badNames},
		{"names", names},
		{"remove", remove},
		{"pins", pins},
		{"attachments", attachments},
		{"concurrent writers and readers", concurrent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			st, reopen := open(t)
			test.run(t, st, reopen)
		})
	}
}

// Publish makes a snapshot of the given files; the manifest is added if lacking.
func Publish(t testing.TB, st store.Store, id uuid.UUID, files map[string]string) {
	t.Helper()
	d := begin(t, st, id)
	defer d.Abort()
	fill(t, d, files)
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func begin(t testing.TB, st store.Store, id uuid.UUID) store.Draft {
	t.Helper()
	d, err := st.Begin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fill(t testing.TB, d store.Draft, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if name != store.Manifest {
			put(t, d, name, content)
		}
	}
	manifest, ok := files[store.Manifest]
	if !ok {
		manifest = "{}"
	}
	put(t, d, store.Manifest, manifest)
}

func put(t testing.TB, d store.Draft, name, content string) {
	t.Helper()
	f, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, content); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, st store.Store, id uuid.UUID, name string) string {
	t.Helper()
	o, err := st.Open(t.Context(), id, name)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	data, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	if err != nil || int64(len(data)) != o.Size() {
		t.Fatalf("read %d of %d bytes: %v", len(data), o.Size(), err)
	}
	return string(data)
}

func list(t testing.TB, st store.Store) []uuid.UUID {
	t.Helper()
	ids, err := st.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// wantError checks that err is one of kind and speaks of all words.
func wantError(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Fatalf("got error %v, want one that is %v", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not speak of %q", err, word)
		}
	}
}

func publishAndRead(t *testing.T, st store.Store, reopen func() store.Store) {
	files := map[string]string{
		"memfile":        strings.Repeat("memory ", 100_000),
		"memfile.header": "head",
		"snapfile":       "",
		store.Manifest:   `{"a":1}`,
	}
	a, b := uuid.New(), uuid.New()
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	Publish(t, st, b, files)
	Publish(t, st, a, nil)
	for _, st := range []store.Store{st, reopen()} {
		if diff := cmp.Diff([]uuid.UUID{a, b}, list(t, st)); diff != "" {
			t.Error(diff)
		}
		for name, want := range files {
			if got := read(t, st, b, name); got != want {
				t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
			}
		}
	}
	o, err := st.Open(t.Context(), b, "memfile")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	p := make([]byte, 14)
	if _, err := o.ReadAt(p, 7); err != nil || string(p) != "memory memory " {
		t.Errorf("ReadAt gave %q, %v", p, err)
	}
	if n, err := o.ReadAt(p, o.Size()-7); n != 7 || err != io.EOF {
		t.Errorf("ReadAt over the end gave %d, %v", n, err)
	}
}

func invisible(t *testing.T, st store.Store, reopen func() store.Store) {
	id := uuid.New()
	d := begin(t, st, id)
	defer d.Abort()
	check := func(when string) {
		t.Helper()
		for _, st := range []store.Store{st, reopen()} {
			if ids := list(t, st); len(ids) != 0 {
				t.Errorf("%s: listed as %v", when, ids)
			}
			_, err := st.Open(t.Context(), id, "memfile")
			wantError(t, err, store.ErrNoSnapshot)
			_, err = st.Pin(t.Context(), id)
			wantError(t, err, store.ErrNoSnapshot)
			wantError(t, st.SetName(t.Context(), "name", id), store.ErrNoSnapshot)
		}
	}
	check("begun")
	put(t, d, "memfile", "x")
	check("written")
	put(t, d, store.Manifest, "{}")
	check("manifest written")
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, reopen(), id, "memfile"); got != "x" {
		t.Errorf("after commit: %q", got)
	}
}

func abort(t *testing.T, st store.Store, reopen func() store.Store) {
	id := uuid.New()
	d := begin(t, st, id)
	f, err := d.Create("memfile")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 3)
	if _, err := f.ReadAt(p, 1); err != nil || string(p) != "234" || f.Size() != 5 {
		t.Errorf("reading back while writing: %q of %d, %v", p, f.Size(), err)
	}
	for range 2 {
		if err := d.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Write([]byte("more")); err == nil {
		t.Error("wrote to an aborted draft")
	}
	_, err = d.Create("other")
	wantError(t, err, store.ErrOver)
	wantError(t, d.Commit(t.Context()), store.ErrOver)
	Publish(t, reopen(), id, nil) // the id is free again
}

func draftRules(t *testing.T, st store.Store, _ func() store.Store) {
	_, err := st.Begin(t.Context(), uuid.Nil)
	wantError(t, err, nil, "nil UUID")

	d := begin(t, st, uuid.New())
	put(t, d, "memfile", "x")
	_, err = d.Create("memfile")
	wantError(t, err, fs.ErrExist, "memfile")
	open, err := d.Create("snapfile")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Create(store.Manifest)
	wantError(t, err, nil, "snapfile", "still being written")
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = open.Write([]byte("x"))
	wantError(t, err, fs.ErrClosed, "snapfile")
	put(t, d, store.Manifest, "{}")
	_, err = d.Create("late")
	wantError(t, err, nil, store.Manifest)
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.Commit(t.Context()), store.ErrOver)
	if err := d.Abort(); err != nil || len(list(t, st)) != 1 {
		t.Errorf("abort after commit: %v, left %d snapshots", err, len(list(t, st)))
	}

	id := uuid.New()
	d = begin(t, st, id)
	put(t, d, "memfile", "x")
	wantError(t, d.Commit(t.Context()), nil, store.Manifest, id.String())

	d = begin(t, st, id)
	if _, err = d.Create(store.Manifest); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.Commit(t.Context()), nil, "still being written")
	if n := len(list(t, st)); n != 1 {
		t.Errorf("%d snapshots after failed commits, want 1", n)
	}
}

func oneID(t *testing.T, st store.Store, reopen func() store.Store) {
	id := uuid.New()
	first, second := begin(t, st, id), begin(t, reopen(), id)
	fill(t, first, map[string]string{"memfile": "first"})
	fill(t, second, map[string]string{"memfile": "second"})
	if err := first.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, second.Commit(t.Context()), store.ErrExist, id.String())
	if got := read(t, st, id, "memfile"); got != "first" {
		t.Errorf("read %q", got)
	}
	_, err := st.Begin(t.Context(), id)
	wantError(t, err, store.ErrExist, id.String())
	wantError(t, err, fs.ErrExist)
}

func deadContext(t *testing.T, st store.Store, _ func() store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	id := uuid.New()
	d, err := st.Begin(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, store.Manifest, "{}")
	cancel()
	wantError(t, d.Commit(ctx), context.Canceled)
	_, err = st.Begin(ctx, id)
	wantError(t, err, context.Canceled)
	if ids := list(t, st); len(ids) != 0 {
		t.Errorf("published %v", ids)
	}
}

func notThere(t *testing.T, st store.Store, _ func() store.Store) {
	if ids := list(t, st); len(ids) != 0 {
		t.Errorf("an empty store lists %v", ids)
	}
	names, err := st.Names(t.Context())
	if err != nil || len(names) != 0 {
		t.Errorf("an empty store has names %v, %v", names, err)
	}
	id := uuid.New()
	_, err = st.Open(t.Context(), id, "memfile")
	wantError(t, err, store.ErrNoSnapshot, "memfile", id.String())
	wantError(t, err, fs.ErrNotExist)
	var e *store.Error
	if !errors.As(err, &e) || e.ID != id || e.Artifact != "memfile" {
		t.Errorf("error %#v", err)
	}
	wantError(t, st.Remove(t.Context(), id, nil), store.ErrNoSnapshot, id.String())
	wantError(t, st.RemoveName(t.Context(), "nobody"), store.ErrNoName, "nobody")
	Publish(t, st, id, nil)
	_, err = st.Open(t.Context(), id, "memfile")
	wantError(t, err, store.ErrNoArtifact, "memfile", id.String())
	wantError(t, err, fs.ErrNotExist)
	wantError(t, st.RemoveName(t.Context(), "nobody"), store.ErrNoName, "nobody")
}

func badNames(t *testing.T, st store.Store, _ func() store.Store) {
	id := uuid.New()
	Publish(t, st, id, nil)
	for _, name := range []string{"", ".", "..", "a/b", "../x", "UPPER", "a b", "a\x00", ".hidden", "a..b", strings.Repeat("a", 65), "é"} {
		_, err := st.Open(t.Context(), id, name)
		wantError(t, err, store.ErrBadName)
		d := begin(t, st, uuid.New())
		_, err = d.Create(name)
		wantError(t, err, store.ErrBadName)
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "/", "a/", "/a", "a//b", "a/./b", "a/../b", "a..b", "-a", "a b", "a\n", "a+b", "é", "a\x00b",
		strings.Repeat("a", 129), id.String(), strings.ToUpper(id.String()), strings.ReplaceAll(id.String(), "-", "")} {
		wantError(t, st.SetName(t.Context(), name, id), store.ErrBadName)
		wantError(t, st.RemoveName(t.Context(), name), store.ErrBadName)
	}
}

func remove(t *testing.T, st store.Store, reopen func() store.Store) {
	id, other := uuid.New(), uuid.New()
	Publish(t, st, id, map[string]string{"memfile": "x"})
	Publish(t, st, other, nil)
	no := errors.New("no")
	if err := st.Remove(t.Context(), id, func(context.Context) error { return no }); err != no {
		t.Errorf("got %v, want what was returned", err)
	}
	if got := read(t, st, id, "memfile"); got != "x" {
		t.Errorf("read %q", got)
	}
	o, err := st.Open(t.Context(), id, "memfile")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	called := false
	err = st.Remove(t.Context(), id, func(ctx context.Context) error {
		called = true
		if ids := list(t, st); len(ids) != 2 { // the check may look around
			t.Errorf("listed %v", ids)
		}
		return nil
	})
	if err != nil || !called {
		t.Fatalf("removing: %v, asked: %t", err, called)
	}
	if diff := cmp.Diff([]uuid.UUID{other}, list(t, reopen())); diff != "" {
		t.Error(diff)
	}
	wantError(t, st.Remove(t.Context(), id, nil), store.ErrNoSnapshot)
}
