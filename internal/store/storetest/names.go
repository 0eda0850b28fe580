package storetest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

func names(t *testing.T, st store.Store, reopen func() store.Store) {
	a, b := uuid.New(), uuid.New()
	Publish(t, st, a, nil)
	Publish(t, st, b, nil)
	want := map[string]uuid.UUID{}
	set := func(name string, id uuid.UUID) {
		t.Helper()
		if err := st.SetName(t.Context(), name, id); err != nil {
			t.Fatal(err)
		}
		want[name] = id
	}
	check := func() {
		t.Helper()
		for _, st := range []store.Store{st, reopen()} {
			got, err := st.Names(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for name, id := range want {
				if one, err := st.Name(t.Context(), name); err != nil || one != id {
					t.Errorf("%s is %s, %v; want %s", name, one, err, id)
				}
			}
			_, err = st.Name(t.Context(), "nobody")
			wantError(t, err, store.ErrNoName, "nobody")
			_, err = st.Name(t.Context(), "../x")
			wantError(t, err, store.ErrBadName)
		}
	}
	set("python", a)
	set("team/python:3.12-slim_x", a)
	set(strings.Repeat("a/", 63)+"ab", b)
	set("beef", b) // like the beginning of an id
	check()
	set("python", b)
	check()
	if err := st.RemoveName(t.Context(), "python"); err != nil {
		t.Fatal(err)
	}
	delete(want, "python")
	check()
	wantError(t, st.SetName(t.Context(), "beef", uuid.New()), store.ErrNoSnapshot, "beef")
	check()
	if err := st.Remove(t.Context(), b, nil); err != nil {
		t.Fatal(err)
	}
	delete(want, "beef")
	delete(want, strings.Repeat("a/", 63)+"ab")
	check()
	Publish(t, st, b, nil) // its old names do not come back
	check()
}

func pins(t *testing.T, st store.Store, reopen func() store.Store) {
	id := uuid.New()
	Publish(t, st, id, nil)
	first, err := st.Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	second, err := reopen().Pin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	asked := func(context.Context) error { t.Error("asked while pinned"); return nil }
	if used, err := st.InUse(t.Context(), id); err != nil || !used {
		t.Errorf("in use: %t, %v", used, err)
	}
	wantError(t, st.Remove(t.Context(), id, asked), store.ErrInUse, id.String())
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, reopen().Remove(t.Context(), id, asked), store.ErrInUse)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if used, err := reopen().InUse(t.Context(), id); err != nil || used {
		t.Errorf("in use after the pins are gone: %t, %v", used, err)
	}
	err = st.Remove(t.Context(), id, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := st.Pin(ctx, id); err == nil {
			t.Error("pinned what is being removed")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Pin(t.Context(), id)
	wantError(t, err, store.ErrNoSnapshot)
	_, err = st.InUse(t.Context(), id)
	wantError(t, err, store.ErrNoSnapshot)
}

func attachments(t *testing.T, st store.Store, reopen func() store.Store) {
	id := uuid.New()
	const name = "metadata.sig"
	wantError(t, st.Attach(t.Context(), id, name, []byte("x")), store.ErrNoSnapshot)
	before := time.Now().Add(-time.Minute) // clocks differ
	_, err := st.Published(t.Context(), id)
	wantError(t, err, store.ErrNoSnapshot)
	Publish(t, st, id, map[string]string{"memfile": "m"})
	if at, err := reopen().Published(t.Context(), id); err != nil || at.Before(before) || time.Until(at) > time.Minute {
		t.Errorf("published at %v, %v", at, err)
	}
	_, err = st.Open(t.Context(), id, name)
	wantError(t, err, store.ErrNoArtifact)
	for _, content := range []string{"first", "second, longer", ""} {
		if err := st.Attach(t.Context(), id, name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, reopen(), id, name); got != content {
			t.Errorf("read %q, attached %q", got, content)
		}
	}
	const other = "memfile.prefetch"
	if err := st.Attach(t.Context(), id, other, []byte("list")); err != nil {
		t.Fatal(err)
	}
	if got, kept := read(t, reopen(), id, other), read(t, st, id, name); got != "list" || kept != "" {
		t.Errorf("beside each other are %q and %q", got, kept)
	}
	for _, taken := range []string{"memfile", store.Manifest, "../x.sig", ".sig", "memfile.header", ".prefetch"} {
		wantError(t, st.Attach(t.Context(), id, taken, []byte("x")), store.ErrBadName)
	}
	if err := st.Attach(t.Context(), id, name, make([]byte, store.MaxAttachment+1)); err == nil {
		t.Error("attached more than is allowed")
	}
	if got := read(t, st, id, "memfile"); got != "m" {
		t.Errorf("memfile is %q", got)
	}
	if err := st.Remove(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	_, err = reopen().Open(t.Context(), id, name)
	wantError(t, err, store.ErrNoSnapshot)
}
