package storetest

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

// concurrent has writers race for ids, and remove and name what they published,
// while readers check that all they see is whole.
func concurrent(t *testing.T, st store.Store, reopen func() store.Store) {
	ids := make([]uuid.UUID, 8)
	for i := range ids {
		ids[i] = uuid.New()
	}
	var writers, readers sync.WaitGroup
	var over atomic.Bool
	for range 2 {
		st := reopen()
		readers.Go(func() {
			for !over.Load() {
				readAll(t, st)
			}
		})
	}
	var won [8]atomic.Int32
	for range 3 {
		st := reopen()
		writers.Go(func() {
			for i, id := range ids {
				won[i].Add(race(t, st, id))
			}
		})
	}
	writers.Wait()
	over.Store(true)
	readers.Wait()
	for i := range won {
		if n := won[i].Load(); n < 1 {
			t.Errorf("snapshot %d was published %d times", i, n)
		}
	}
}

// readAll reads every snapshot that it sees, which others may remove meanwhile.
func readAll(t *testing.T, st store.Store) {
	ids, err := st.List(t.Context())
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		pin, err := st.Pin(t.Context(), id)
		if errors.Is(err, store.ErrNoSnapshot) {
			continue
		} else if err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"memfile", store.Manifest} {
			o, err := st.Open(t.Context(), id, name)
			if err != nil {
				t.Errorf("a pinned snapshot: %v", err)
				continue
			}
			data := make([]byte, o.Size())
			if _, err := o.ReadAt(data, 0); err != nil || string(data) != id.String()+name {
				t.Errorf("%s of %s reads %q, %v", name, id, data, err)
			}
			o.Close()
		}
		pin.Close()
	}
	if _, err := st.Names(t.Context()); err != nil {
		t.Error(err)
	}
}

// race tries to publish id, and returns how often it did.
func race(t *testing.T, st store.Store, id uuid.UUID) int32 {
	d, err := st.Begin(t.Context(), id)
	if errors.Is(err, store.ErrExist) {
		return 0
	} else if err != nil {
		t.Error(err)
		return 0
	}
	defer d.Abort()
	for _, name := range []string{"memfile", store.Manifest} {
		f, err := d.Create(name)
		if err != nil {
			t.Error(err)
			return 0
		}
		_, err = io.WriteString(f, id.String()+name)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Error(err)
			return 0
		}
	}
	if err := d.Commit(t.Context()); errors.Is(err, store.ErrExist) {
		return 0
	} else if err != nil {
		t.Error(err)
		return 0
	}
	if err := st.SetName(t.Context(), "latest", id); err != nil && !errors.Is(err, store.ErrNoSnapshot) {
		t.Error(err)
	}
	if id[0]%2 == 0 {
		err := st.Remove(t.Context(), id, nil)
		if err != nil && !errors.Is(err, store.ErrInUse) && !errors.Is(err, store.ErrNoSnapshot) {
			t.Error(err)
		}
	}
	return 1
}
