package snapshot_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/snapshot"
)

// TestFar reads from a cache what was damaged since in the store; verification is
// not taken in.
func TestFar(t *testing.T) {
	frames := framecache.Open(t.TempDir(), 1<<30)
	w := newWorld(t, snapshot.Far(frames))
	s := w.add(t, uuid.New(), nil, simple(1))
	s.Close()
	read := func() []byte {
		t.Helper()
		s, err := w.repo.OpenID(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return content(t, s.Memory())
	}
	want := read()
	name := w.file(s.ID(), snapshot.MemoryFile)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(), want) {
		t.Error("what was cached is not used")
	}
	open, err := w.repo.OpenID(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	var damage *block.CorruptError
	if err := w.repo.Verify(t.Context(), open, nil); !errors.As(err, &damage) {
		t.Errorf("verified: %v", err)
	}
}
