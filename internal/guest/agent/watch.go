package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	fsapi "github.com/sporevm/spore/internal/guest/api/filesystem"
)

// errOverflow says that changes came faster than they were taken.
var errOverflow = errors.New("too many changes at once, some were lost: list the directory again and watch anew")

// maxWatches bounds the directories of one recursive watch.
const maxWatches = 65536

// watch reports the changes in one directory, and below it if recursive.
type watch struct {
	root      string
	recursive bool
	entries   *names // nil: events carry no entry
	in        *inotify
	dirs      map[int32]string // watch descriptor -> path relative to root, "" for root
}

// newWatch starts watching: changes from now on are reported by run.
func newWatch(root string, recursive bool, entries *names) (_ *watch, err error) {
	st, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, badRequest("%s is no directory", root)
	}
	in, err := newInotify()
	if err != nil {
		return nil, err
	}
	w := &watch{root: root, recursive: recursive, entries: entries, in: in, dirs: map[int32]string{}}
	if err := w.add("", nil); err != nil {
		in.close()
		return nil, err
	}
	return w, nil
}

func (w *watch) close() { w.in.close() }

// add watches the directory rel, and those in it if the watch is recursive. found
// hears of everything that is there already: it may have come before the watch
// stood, so that no event will tell.
func (w *watch) add(rel string, found func(rel string)) error {
	if len(w.dirs) >= maxWatches {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s has more than %d directories to watch", w.root, maxWatches))
	}
	dir := filepath.Join(w.root, rel)
	wd, err := w.in.add(dir, rel == "")
	if err != nil {
		return err
	}
	w.dirs[wd] = rel
	if !w.recursive {
		return nil
	}
	children, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, c := range children {
		child := filepath.Join(rel, c.Name())
		if found != nil {
			found(child)
		}
		if c.IsDir() {
			if err := w.add(child, found); err != nil && !isMissing(err) {
				return err
			}
		}
	}
	return nil
}

// run calls emit for every change until ctx ends, emit fails, the root is
// removed (nil), or changes were lost.
func (w *watch) run(ctx context.Context, emit func(*fsapi.FilesystemEvent) error) error {
	stop := context.AfterFunc(ctx, w.in.close)
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := w.in.read(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("reading changes: %w", err)
		}
		for ev := range parseInotify(buf[:n]) {
			done, err := w.handle(ev, emit)
			if err != nil || done {
				return err
			}
		}
	}
}

// handle translates one event of the kernel. done: the root is gone.
func (w *watch) handle(ev inotifyEvent, emit func(*fsapi.FilesystemEvent) error) (done bool, err error) {
	if ev.mask&unix.IN_Q_OVERFLOW != 0 {
		return false, connect.NewError(connect.CodeDataLoss, errOverflow)
	}
	rel, known := w.dirs[ev.wd]
	if !known {
		return false, nil
	}
	if ev.mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, ev.wd)
		return rel == "", nil
	}
	if ev.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 && rel != "" {
		return false, nil // its parent tells
	}
	name := filepath.Join(rel, ev.name)
	for _, kind := range eventTypes(ev.mask) {
		if err := emit(w.event(name, kind)); err != nil {
			return false, err
		}
	}
	if w.recursive && ev.mask&unix.IN_ISDIR != 0 {
		switch {
		case ev.mask&unix.IN_MOVED_FROM != 0:
			w.forget(name)
		case ev.mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
			err := w.addLate(name, emit)
			if err != nil && !isMissing(err) {
				return false, err
			}
		}
	}
	return false, nil
}

// addLate watches a directory that has just appeared and reports what was put
// into it before the watch stood.
func (w *watch) addLate(name string, emit func(*fsapi.FilesystemEvent) error) (err error) {
	var failed error
	err = w.add(name, func(rel string) {
		if failed == nil {
			failed = emit(w.event(rel, fsapi.EventType_EVENT_TYPE_CREATE))
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

// forget stops watching a directory that moved away and what is below it.
func (w *watch) forget(name string) {
	for wd, rel := range w.dirs {
		if rel == name || strings.HasPrefix(rel, name+"/") {
			delete(w.dirs, wd)
			w.in.remove(wd)
		}
	}
}

func (w *watch) event(name string, kind fsapi.EventType) *fsapi.FilesystemEvent {
	ev := &fsapi.FilesystemEvent{Name: text(name), Type: kind}
	if w.entries != nil {
		if e, err := statEntry(filepath.Join(w.root, name), *w.entries); err == nil {
			ev.Entry = e
		}
	}
	return ev
}

// eventTypes translates a kernel's event, which may stand for several.
func eventTypes(mask uint32) []fsapi.EventType {
	var types []fsapi.EventType
	for _, t := range []struct {
		mask uint32
		kind fsapi.EventType
	}{
		{unix.IN_CREATE | unix.IN_MOVED_TO, fsapi.EventType_EVENT_TYPE_CREATE},
		{unix.IN_MODIFY, fsapi.EventType_EVENT_TYPE_WRITE},
		{unix.IN_DELETE | unix.IN_DELETE_SELF, fsapi.EventType_EVENT_TYPE_REMOVE},
		{unix.IN_MOVED_FROM | unix.IN_MOVE_SELF, fsapi.EventType_EVENT_TYPE_RENAME},
		{unix.IN_ATTRIB, fsapi.EventType_EVENT_TYPE_CHMOD},
	} {
		if mask&t.mask != 0 {
			types = append(types, t.kind)
		}
	}
	return types
}

func (f *fileService) WatchDir(ctx context.Context, req *connect.Request[fsapi.WatchDirRequest], stream *connect.ServerStream[fsapi.WatchDirResponse]) error {
	path, _, err := f.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return err
	}
	w, err := newWatch(path, req.Msg.GetRecursive(), f.entryNames(req.Msg.GetIncludeEntry()))
	if err != nil {
		return rpcFileError(err)
	}
	defer w.close()
	if err := stream.Send(&fsapi.WatchDirResponse{Event: &fsapi.WatchDirResponse_Start{Start: &fsapi.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	// Sending has one place, because a stream takes one sender at a time.
	events := make(chan *fsapi.FilesystemEvent, 64)
	result := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(events)
		result <- w.run(ctx, func(ev *fsapi.FilesystemEvent) error {
			select {
			case events <- ev:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	var tick <-chan time.Time
	if every := keepalive(req.Header()); every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	for {
		res := &fsapi.WatchDirResponse{Event: &fsapi.WatchDirResponse_Keepalive{Keepalive: &fsapi.WatchDirResponse_KeepAlive{}}}
		select {
		case <-tick:
		case ev, ok := <-events:
			if !ok {
				if err := <-result; err != nil {
					return rpcFileError(err)
				}
				return nil
			}
			res.Event = &fsapi.WatchDirResponse_Filesystem{Filesystem: ev}
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

// entryNames returns what events with entries need, nil for events without.
func (f *fileService) entryNames(wanted bool) *names {
	if !wanted {
		return nil
	}
	n := f.s.accounts.names()
	return &n
}
