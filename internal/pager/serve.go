package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sporevm/spore/internal/block"
)

// maxOrder bounds what a pager reads of its standard input, in bytes.
const maxOrder = 64 << 10

// server is the pager process.
type server struct {
	root     string
	source   *source
	log      *slog.Logger
	poll     *poller
	control  *net.UnixListener
	done     chan struct{} // closed when it is to end
	doneOnce sync.Once
	faults   atomic.Int64

	mu       sync.Mutex
	forks    map[string]*fork
	sockets  int // that were ever made
	tracker  *wire
	orphaned *time.Timer   // runs while there is no tracker and no machine
	grace    time.Duration // of orphaned
	closing  bool
}

// Serve is the body of a pager process, which a [Tracker] starts. It reads what to
// serve from in, answers on out, and serves until ctx ends, it is told to end by
// the connection that it has as descriptor 3, or nobody needs it any more. open opens the image of a template, which is not closed. Machines
// that are still connected at the end are killed.
func Serve(ctx context.Context, in io.Reader, out io.Writer, open func(ctx context.Context, id string) (Image, error), log *slog.Logger) error {
	s, err := newServer(ctx, in, open, log)
	answer := started{Error: block.Tell(err)}
	if err := errors.Join(err, json.NewEncoder(out).Encode(answer)); err != nil {
		if s != nil {
			err = errors.Join(err, s.close())
		}
		return err
	}
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	return s.close()
}

func newServer(ctx context.Context, in io.Reader, open func(ctx context.Context, id string) (Image, error), log *slog.Logger) (_ *server, err error) {
	var o order
	if err := json.NewDecoder(io.LimitReader(in, maxOrder)).Decode(&o); err != nil {
		return nil, fmt.Errorf("reading what to serve: %w", err)
	}
	s := &server{root: o.Root, log: log, done: make(chan struct{}), forks: map[string]*fork{}}
	s.control, err = listen(filepath.Join(o.Root, controlSocket), "unixpacket", os.Geteuid())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.control.Close()
		}
	}()
	tracker, err := connection(os.NewFile(trackerFD, "tracker"))
	if err != nil {
		return nil, err
	}
	image, err := open(ctx, o.Template)
	if err != nil {
		return nil, err
	}
	if s.source, err = openSource(image, o.CacheBytes, time.Duration(o.PageMillis)*time.Millisecond); err != nil {
		return nil, err
	}
	// Those who answer faults sleep in the kernel and must not have to wait for a
	// turn when they wake: the kernel shares out the CPUs better.
	threads := max(2, runtime.NumCPU())
	runtime.GOMAXPROCS(threads + runtime.NumCPU())
	if s.poll, err = newPoller(threads, &s.faults); err != nil {
		return nil, err
	}
	s.grace = time.Duration(o.OrphanMillis) * time.Millisecond
	s.orphaned = time.AfterFunc(s.grace, s.end)
	go s.obey(newWire(tracker))
	go s.acceptTrackers()
	return s, nil
}

// trackerFD is a pager's connection to the Tracker that has started it. That it
// comes with the process leaves nothing to fail later.
const trackerFD = 3

// connection makes a connection of a socket, which it closes.
func connection(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // FileConn makes a copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("taking over a connection: %w", err)
	}
	if c, ok := conn.(*net.UnixConn); ok {
		return c, nil
	}
	conn.Close()
	return nil, errors.New("taking over a connection: it is not one of a unix socket")
}

// controlSocket is the name of the socket for Trackers in a pager's directory.
const controlSocket = "control"

// end has Serve return.
func (s *server) end() { s.doneOnce.Do(func() { close(s.done) }) }

// close kills what is connected and removes the pager's directory.
func (s *server) close() error {
	s.control.Close()
	s.mu.Lock()
	s.closing = true
	s.orphaned.Stop()
	forks := make([]*fork, 0, len(s.forks))
	for _, f := range s.forks {
		forks = append(forks, f)
	}
	tracker := s.tracker
	s.mu.Unlock()
	var errs []error
	var group sync.WaitGroup
	for _, f := range forks {
		group.Go(func() {
			if err := s.dismiss(f); err != nil {
				s.mu.Lock()
				errs = append(errs, err)
				s.mu.Unlock()
			}
		})
	}
	group.Wait()
	s.poll.close()
	if tracker != nil {
		tracker.conn.Close()
	}
	return errors.Join(append(errs, os.RemoveAll(s.root))...)
}

// listen makes a socket that only one user can reach.
func listen(path, network string, uid int) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listening on %s: the path is longer than the %d bytes that a unix socket's may have; use a shorter directory", path, maxSocketPath)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600)
	if err == nil && uid != os.Geteuid() {
		err = os.Lchown(path, uid, -1)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("giving a socket to user %d alone: %w", uid, err)
	}
	return l, nil
}

// maxSocketPath is what the kernel allows, without the zero at its end.
const maxSocketPath = 107
