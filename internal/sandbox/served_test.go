package sandbox

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

// stubborn is a page server that has trouble letting go.
type stubborn struct{ released []string }

func (*stubborn) Acquire(context.Context, *snapshot.Snapshot, string, int, snapshot.Pages, func(error)) (string, error) {
	return "", errors.ErrUnsupported
}

func (p *stubborn) Release(fork string) error {
	p.released = append(p.released, fork)
	return errors.New("the pager is stuck")
}

// TestReleaseIsNoReason closes a sandbox whose page server does not let go of it: it is told, and is no error.
func TestReleaseIsNoReason(t *testing.T) {
	var log bytes.Buffer
	pages := &stubborn{}
	s := &Sandbox{host: &Host{HostOptions{Pages: pages, Log: slog.New(slog.NewTextHandler(&log, nil))}}, id: uuid.New(), pages: &served{socket: "socket"}}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if len(pages.released) != 1 || pages.released[0] != s.id.String() {
		t.Errorf("released: %q, want %s once", pages.released, s.id)
	}
	if !strings.Contains(log.String(), "the pager is stuck") {
		t.Errorf("the log says %q", log.String())
	}
}
