package expose

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHungUp says that an NBD client went away in the middle of something, as a killed VMM does. A client that closes its connection while nothing is
// under way ends it without an error.
var ErrHungUp = errors.New("the client hung up")

// NBDOptions say how an NBDServer serves its disk. The zero value is good.
type NBDOptions struct {
	// Name is the export's name; clients that ask for the default export (the empty name) get it as well.
	Name string
	// ReadOnly refuses all changes.
	ReadOnly bool
	// Faulted, if set, is told of every failure of the disk, before the client is. Calls may be concurrent and hold up the request.
	Faulted func(*Fault)
	// Ended, if set, is told how each connection accepted by Serve ended; nil for a proper end.
	Ended func(error)
	// Handshake is the time a client has to choose its export; 0 means a minute.
	Handshake time.Duration
}

// NBDServer serves one Disk to NBD clients: to several at once if need be, each with many requests under way.
type NBDServer struct {
	disk    Disk
	options NBDOptions
	buffers buffers
	drain   time.Duration // see nbdDrainMax

	mu    sync.Mutex
	fault *Fault
}

// NewNBDServer returns a server of disk. The disk stays the caller's to close, once nothing serves it any more.
func NewNBDServer(disk Disk, options NBDOptions) *NBDServer {
	if options.Handshake == 0 {
		options.Handshake = nbdHandshakeMax
	}
	return &NBDServer{disk: disk, options: options, drain: nbdDrainMax}
}

// Fault returns the first failure of the disk, or nil.
func (s *NBDServer) Fault() *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// Serve accepts connections until ctx is done, then closes the listener and all connections, waits for their requests to end and returns ctx's cause.
// At most 16 connections are served at once; more wait.
func (s *NBDServer) Serve(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	places := make(chan struct{}, nbdConnections)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		conn, err := listener.Accept()
		if err != nil {
			<-places
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ECONNABORTED) {
				return fmt.Errorf("accepting NBD clients: %w", err)
			}
			pause(ctx, 100*time.Millisecond)
			continue
		}
		conns.Go(func() {
			defer func() { <-places }()
			err := s.ServeConn(ctx, conn)
			if s.options.Ended != nil {
				s.options.Ended(err)
			}
		})
	}
}

// pause gives a passing shortage of descriptors time to pass.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ServeConn serves the client at the other end of conn until it disconnects (nil), breaks off (ErrHungUp), breaks the protocol (some other error) or ctx is
// done (ctx's cause). It closes conn, and returns only when no request of the client's is under way any more.
// Failures of the disk do not end it: they are reported to the client, to options.Faulted and by Fault.
func (s *NBDServer) ServeConn(ctx context.Context, conn net.Conn) error {
	return s.serveConn(ctx, conn, false)
}

// serveConn serves a client that has settled its terms, as Linux's own does by other ways, or is yet to do so.
func (s *NBDServer) serveConn(ctx context.Context, conn net.Conn, settled bool) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	c := &nbdConn{
		server:  s,
		conn:    conn,
		in:      bufio.NewReaderSize(conn, nbdReadBuffer),
		size:    s.disk.Size(),
		settled: settled,
	}
	err := c.serve(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, io.ErrClosedPipe):
		return fmt.Errorf("serving NBD: %w: %w", ErrHungUp, err)
	case err != nil:
		return fmt.Errorf("serving NBD: %w", err)
	}
	return nil
}

// flags says what the export can do.
func (s *NBDServer) flags() uint16 {
	flags := uint16(nbdHasFlags | nbdSendFlush | nbdCanMultiConn)
	if s.options.ReadOnly {
		return flags | nbdReadOnly
	}
	return flags | nbdSendFUA | nbdSendTrim | nbdSendWriteZeroes | nbdSendFastZero
}

// report keeps the first fault and tells the owner of every one.
func (s *NBDServer) report(f *Fault) {
	s.mu.Lock()
	if s.fault == nil {
		s.fault = f
	}
	s.mu.Unlock()
	if s.options.Faulted != nil {
		s.options.Faulted(f)
	}
}
