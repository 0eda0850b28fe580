package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"

	fsapi "github.com/sporevm/spore/internal/guest/api/filesystem"
)

// Bounds of what polled watchers may hold. A client that never comes back must
// not cost more.
const (
	maxWatchers = 128
	maxPending  = 16384 // events of one watcher
)

// watchers are the polled form of WatchDir.
type watchers struct {
	mu  sync.Mutex
	all map[string]*watcher
}

type watcher struct {
	cancel context.CancelFunc

	mu      sync.Mutex
	pending []*fsapi.FilesystemEvent
	err     error // why it ended
	ended   bool
}

func newWatchers() *watchers { return &watchers{all: map[string]*watcher{}} }

func (ws *watchers) add(w *watch) (string, error) {
	ctx, cancel := context.WithCancel(context.Background())
	h := &watcher{cancel: cancel}
	id := "w" + rand.Text()
	ws.mu.Lock()
	if len(ws.all) >= maxWatchers {
		ws.mu.Unlock()
		cancel()
		return "", connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d watchers are open: remove one first", maxWatchers))
	}
	ws.all[id] = h
	ws.mu.Unlock()
	go func() {
		defer w.close()
		err := w.run(ctx, h.push)
		h.mu.Lock()
		h.ended, h.err = true, err
		h.mu.Unlock()
	}()
	return id, nil
}

func (h *watcher) push(ev *fsapi.FilesystemEvent) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pending) == maxPending {
		return connect.NewError(connect.CodeDataLoss, errOverflow)
	}
	h.pending = append(h.pending, ev)
	return nil
}

// take returns the events since the last call. After the last of them comes
// the error that ended the watch, if one did.
func (h *watcher) take() ([]*fsapi.FilesystemEvent, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := h.pending
	h.pending = nil
	if len(events) == 0 && h.ended {
		return nil, h.err
	}
	return events, nil
}

func (ws *watchers) get(id string) (*watcher, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if h := ws.all[id]; h != nil {
		return h, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("no such watcher"))
}

func (ws *watchers) remove(id string) error {
	h, err := ws.get(id)
	if err != nil {
		return err
	}
	ws.mu.Lock()
	delete(ws.all, id)
	ws.mu.Unlock()
	h.cancel()
	return nil
}

func (ws *watchers) closeAll() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for id, h := range ws.all {
		h.cancel()
		delete(ws.all, id)
	}
}

func (f *fileService) CreateWatcher(_ context.Context, req *connect.Request[fsapi.CreateWatcherRequest]) (*connect.Response[fsapi.CreateWatcherResponse], error) {
	path, _, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	w, err := newWatch(path, req.Msg.GetRecursive(), f.entryNames(req.Msg.GetIncludeEntry()))
	if err != nil {
		return nil, rpcFileError(err)
	}
	id, err := f.s.watchers.add(w)
	if err != nil {
		w.close()
		return nil, err
	}
	return connect.NewResponse(&fsapi.CreateWatcherResponse{WatcherId: id}), nil
}

func (f *fileService) GetWatcherEvents(_ context.Context, req *connect.Request[fsapi.GetWatcherEventsRequest]) (*connect.Response[fsapi.GetWatcherEventsResponse], error) {
	h, err := f.s.watchers.get(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	events, err := h.take()
	if err != nil {
		return nil, rpcFileError(err)
	}
	return connect.NewResponse(&fsapi.GetWatcherEventsResponse{Events: events}), nil
}

func (f *fileService) RemoveWatcher(_ context.Context, req *connect.Request[fsapi.RemoveWatcherRequest]) (*connect.Response[fsapi.RemoveWatcherResponse], error) {
	if err := f.s.watchers.remove(req.Msg.GetWatcherId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&fsapi.RemoveWatcherResponse{}), nil
}
