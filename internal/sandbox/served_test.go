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
	"github.com/sporevm/spore/internal/vmm"
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

// unservable is an engine whose machines may not have their memory served on this host.
type unservable struct {
	vmm.Engine
	refusal error
	users   int // that were taken
}

func (*unservable) Name() string { return "unservable" }

func (e *unservable) Needs() vmm.Needs {
	newUser := func() (vmm.User, error) {
		e.users++
		return nil, errors.New("there are no users")
	}
	return vmm.Needs{Served: true, NewUser: newUser, MayServe: func() error { return e.refusal }}
}

// TestServedNowhere wakes what is far away where its engine may not have memory served: nothing is started for it.
func TestServedNowhere(t *testing.T) {
	engine := &unservable{refusal: errors.New("the kernel does not let it")}
	repo, err := openFar(memoryTask{Store: t.TempDir(), Cache: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pages := &stubborn{}
	h := &Host{HostOptions{Engine: engine, Pages: pages, Snapshots: repo, Log: slog.New(slog.DiscardHandler)}}
	s := &Sandbox{host: h, id: uuid.New(), meta: snapshot.Metadata{Engine: snapshot.Engine{Name: engine.Name()}}}
	for _, refusal := range []error{engine.refusal, nil} {
		engine.refusal = refusal
		err := h.memory(t.Context(), s, ResumeOptions{}, NoProgress{})
		if want := "the kernel does not let it"; refusal != nil && (err == nil || !strings.Contains(err.Error(), want) || engine.users > 0) {
			t.Errorf("%d users were taken, and the error is %v, want %s", engine.users, err, want)
		}
		if want := "there are no users"; refusal == nil && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("without that: %v, want %s", err, want)
		}
	}
}
