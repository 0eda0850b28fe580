package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api/filesystem"
)

// watching collects the events of a watch.
type watching struct {
	mu     sync.Mutex
	events []string
	ended  chan error
}

func watchDir(t *testing.T, c *Client, dir string, recursive bool) *watching {
	t.Helper()
	w := &watching{ended: make(chan error, 1)}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		w.ended <- c.Watch(ctx, dir, recursive, func() { close(ready) }, func(e FileEvent) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, fmt.Sprintf("%s %s", e.Name, e.Change))
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-w.ended:
		t.Fatal(err)
	}
	return w
}

func (w *watching) expect(t *testing.T, want ...string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		got := slices.Clone(w.events)
		w.mu.Unlock()
		missing := slices.DeleteFunc(slices.Clone(want), func(e string) bool { return slices.Contains(got, e) })
		if len(missing) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("missing %q in %q", missing, got)
		}
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, session(t), dir, false)
	os.Mkdir(dir+"/sub", 0o755)
	os.WriteFile(dir+"/sub/unseen", []byte("x"), 0o644)
	os.WriteFile(dir+"/f", []byte("x"), 0o644)
	os.Chmod(dir+"/f", 0o600)
	os.Rename(dir+"/f", dir+"/g")
	os.Remove(dir + "/g")
	w.expect(t, "sub created", "f created", "f written", "f mode changed", "f renamed", "g created", "g removed")
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, "unseen") }) {
		t.Errorf("a plain watch saw below: %q", w.events)
	}
}

func TestWatchRecursive(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(dir+"/old/deep", 0o755)
	w := watchDir(t, session(t), dir, true)
	os.WriteFile(dir+"/old/deep/f", []byte("x"), 0o644)
	w.expect(t, "old/deep/f created", "old/deep/f written")
	// What is made at one stroke, before the new directory can be watched.
	os.MkdirAll(dir+"/new/a/b", 0o755)
	os.WriteFile(dir+"/new/a/b/g", nil, 0o644)
	w.expect(t, "new created", "new/a created", "new/a/b created", "new/a/b/g created")
	// A tree that moves is reported under its new name from then on.
	os.Rename(dir+"/new", dir+"/moved")
	w.expect(t, "new renamed", "moved created", "moved/a/b/g created")
	os.WriteFile(dir+"/moved/a/b/h", nil, 0o644)
	w.expect(t, "moved/a/b/h created")
	os.RemoveAll(dir + "/moved")
	w.expect(t, "moved/a/b/h removed", "moved/a removed", "moved removed")
	os.Mkdir(dir+"/moved", 0o755) // the same name again
	os.WriteFile(dir+"/moved/again", nil, 0o644)
	w.expect(t, "moved/again created")
}

func TestWatchEndsWithItsDirectory(t *testing.T) {
	dir := t.TempDir() + "/gone"
	os.Mkdir(dir, 0o755)
	w := watchDir(t, session(t), dir, false)
	os.Remove(dir)
	select {
	case err := <-w.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the watch goes on")
	}
}

func TestWatchFailures(t *testing.T) {
	c := session(t)
	file := t.TempDir() + "/f"
	os.WriteFile(file, nil, 0o644)
	for _, path := range []string{file, file + "-none"} {
		if err := c.Watch(t.Context(), path, false, nil, nil); err == nil {
			t.Errorf("%s can be watched", path)
		}
	}
	stop := errors.New("enough")
	dir := t.TempDir()
	err := c.Watch(t.Context(), dir, false, func() { os.WriteFile(dir+"/x", nil, 0o644) }, func(FileEvent) error { return stop })
	if err != stop {
		t.Errorf("the callback's error came out as %v", err)
	}
}

func TestPolledWatcher(t *testing.T) {
	c := session(t)
	ctx := t.Context()
	dir := t.TempDir()
	res, err := c.files.CreateWatcher(ctx, connect.NewRequest(&filesystem.CreateWatcherRequest{Path: dir, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.GetWatcherId()
	os.WriteFile(dir+"/f", []byte("12345"), 0o644)
	var seen []*filesystem.FilesystemEvent
	waitFor(t, "the events", func() bool {
		got, err := c.files.GetWatcherEvents(ctx, connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, got.Msg.GetEvents()...)
		return len(seen) >= 2
	})
	if seen[0].GetName() != "f" || seen[0].GetType() != filesystem.EventType_EVENT_TYPE_CREATE || seen[1].GetEntry().GetSize() != 5 {
		t.Errorf("%v", seen)
	}
	if _, err := c.files.RemoveWatcher(ctx, connect.NewRequest(&filesystem.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	_, err = c.files.GetWatcherEvents(ctx, connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("after its removal: %v", err)
	}
}
