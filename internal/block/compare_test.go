package block_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sporevm/spore/internal/block"
)

// tb is what testing.T and rapid.T share here.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

var _ tb = (*testing.T)(nil)

func requireSame(t tb, got, want *block.Header) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("headers differ (-want +got):\n%s", diff)
	}
}

// must returns the value that a call returned, or fails the test by its error.
func must[T any](v T, err error) func(t tb) T {
	return func(t tb) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%v", err)
		}
		return v
	}
}
