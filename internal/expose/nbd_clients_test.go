package expose_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// gated is a disk whose reads below 1 MiB wait.
type gated struct {
	expose.Disk
	reads atomic.Int64
	gate  chan struct{}
}

func (g *gated) ReadAt(p []byte, offset int64) (int, error) {
	g.reads.Add(1)
	if offset < 1<<20 {
		<-g.gate
	}
	return g.Disk.ReadAt(p, offset)
}

// TestSlowRequestHoldsUpNoOther has a read that waits, as one from a remote store may, and others that overtake it.
func TestSlowRequestHoldsUpNoOther(t *testing.T) {
	disk := &gated{Disk: exposetest.Overlay(t, exposetest.Random(1, 2<<20)), gate: make(chan struct{})}
	client := mustDial(t, serve(t, expose.NewNBDServer(disk, expose.NBDOptions{})), "", true)
	defer client.Close()
	slow := make(chan error, 1)
	go func() {
		_, err := client.ReadAt(make([]byte, 4096), 0)
		slow <- err
	}()
	for range 100 {
		if _, err := client.ReadAt(make([]byte, 4096), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-slow:
		t.Fatalf("the slow read has ended before its time: %v", err)
	default:
	}
	close(disk.gate)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// TestGoodbyeWaitsForReplies says goodbye right behind a request.
func TestGoodbyeWaitsForReplies(t *testing.T) {
	for range 50 {
		words := [][]byte{chosen(true)}
		for cookie := range uint64(20) {
			words = append(words, appendRequest(nil, 0, 0, cookie, 0, 4096))
		}
		words = append(words, appendRequest(nil, 0, 2, 0, 0, 0))
		answer, err := say(t, expose.NBDOptions{}, exposetest.Overlay(t, make([]byte, 4096)), words...)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(replies(t, answer)); n != 20 {
			t.Fatalf("%d replies", n)
		}
	}
}

// start serves disk to a client at the other end of a connection, and returns that end and how the server ends.
func start(t *testing.T, ctx context.Context, disk expose.Disk) (*net.UnixConn, <-chan error) {
	t.Helper()
	theirs, ended := connect(t, ctx, expose.NewNBDServer(disk, expose.NBDOptions{}))
	return theirs.(*net.UnixConn), ended
}

// greedy asks for 1 MiB a thousand times and never takes a reply.
func greedy() []byte {
	words := chosen(true)
	for cookie := range uint64(1000) {
		words = appendRequest(words, 0, 0, cookie, 1<<20, 1<<20)
	}
	return words
}

func TestClientThatTakesNoReplies(t *testing.T) {
	for name, end := range map[string]func(conn *net.UnixConn, cancel func()) error{
		"and vanishes": func(conn *net.UnixConn, _ func()) error {
			conn.Close()
			return expose.ErrHungUp
		},
		"until the owner ends it": func(_ *net.UnixConn, cancel func()) error {
			cancel()
			return context.Canceled
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			disk := &gated{Disk: exposetest.Overlay(t, make([]byte, 2<<20))}
			conn, ended := start(t, ctx, disk)
			if _, err := conn.Write(greedy()); err != nil {
				t.Fatal(err)
			}
			for last := int64(-1); last <= 0 || last != disk.reads.Load(); time.Sleep(100 * time.Millisecond) {
				last = disk.reads.Load()
			}
			if n := disk.reads.Load(); n > 64 {
				t.Errorf("%d MiB are held for a client that takes nothing", n)
			}
			want := end(conn, cancel)
			if err := <-ended; !errors.Is(err, want) {
				t.Errorf("the server ended with %v, want %v", err, want)
			}
		})
	}
}

// TestClientThatOnlyTalks has closed its ears: what it asks for then must not be done for ever.
func TestClientThatOnlyTalks(t *testing.T) {
	conn, ended := start(t, t.Context(), exposetest.Overlay(t, make([]byte, 4096)))
	if _, err := conn.Write(chosen(false)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 18+10)); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(appendRequest(nil, 0, 0, 1, 0, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, expose.ErrHungUp) {
		t.Errorf("the server ended with %v", err)
	}
}

// TestClientThatNeverTakesItsLastReplies has said all it has to say, and stays.
func TestClientThatNeverTakesItsLastReplies(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	server := expose.NewNBDServer(exposetest.Overlay(t, make([]byte, 2<<20)), expose.NBDOptions{})
	expose.SetDrain(server, 50*time.Millisecond)
	ended := make(chan error, 1)
	go func() { ended <- server.ServeConn(context.Background(), ours) }()
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(theirs, greeting); err != nil {
		t.Fatal(err)
	}
	// An answer of ten bytes to the export's name is all that it takes.
	go theirs.Write(append(appendRequest(chosen(false), 0, 0, 1, 0, 4096), appendRequest(nil, 0, 2, 0, 0, 0)...))
	if _, err := io.ReadFull(theirs, greeting[:10]); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server ended with %v", err)
	}
}

// zeroLog notes how zeros were asked for.
type zeroLog struct {
	expose.Disk
	allowHole []bool
}

func (z *zeroLog) Zero(_, _ int64, allowHole bool) error {
	z.allowHole = append(z.allowHole, allowHole)
	return nil
}

func TestNoHoleIsPassedOn(t *testing.T) {
	for flags, want := range map[uint16]bool{0: true, 1 << 1: false, 1 << 4: true, 1<<4 | 1<<1: false} {
		disk := &zeroLog{Disk: exposetest.Overlay(t, make([]byte, 4096))}
		if _, err := say(t, expose.NBDOptions{}, disk, chosen(true), appendRequest(nil, flags, 6, 1, 0, 4096)); err != nil {
			t.Fatal(err)
		}
		if len(disk.allowHole) != 1 || disk.allowHole[0] != want {
			t.Errorf("flags %#x: %v", flags, disk.allowHole)
		}
	}
}

// TestEndWaitsForTheDisk: once ServeConn has returned nothing may touch the disk any more, since its owner is going to close it.
func TestEndWaitsForTheDisk(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	disk := &gated{Disk: exposetest.Overlay(t, make([]byte, 2<<20)), gate: make(chan struct{})}
	conn, ended := start(t, ctx, disk)
	if _, err := conn.Write(appendRequest(chosen(true), 0, 0, 1, 0, 4096)); err != nil {
		t.Fatal(err)
	}
	for disk.reads.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while the disk was being read", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(disk.gate)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestClientVanishes closes the connection after every possible number of bytes.
func TestClientVanishes(t *testing.T) {
	words := append(appendRequest(chosen(true), 0, 1, 1, 0, 8), "contents"...)
	for n := range words {
		conn, ended := start(t, t.Context(), exposetest.Overlay(t, make([]byte, 4096)))
		if _, err := conn.Write(words[:n]); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := <-ended; err != nil && !errors.Is(err, expose.ErrHungUp) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

func TestServeTakesSeveralClientsAndEndsAll(t *testing.T) {
	listener, err := expose.Listen(t.TempDir() + "/nbd")
	if err != nil {
		t.Fatal(err)
	}
	disk := exposetest.Overlay(t, make([]byte, 1<<20))
	var ends atomic.Int64
	server := expose.NewNBDServer(disk, expose.NBDOptions{Ended: func(error) { ends.Add(1) }})
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	var clients []*nbdClient
	for range 4 {
		conn, err := net.Dial("unix", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, mustDial(t, conn, "", len(clients)%2 == 0))
	}
	for i, c := range clients {
		if _, err := c.WriteAt([]byte{byte(i + 1)}, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range clients {
		got := make([]byte, 4)
		if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, []byte{1, 2, 3, 4}) {
			t.Errorf("%v, %v", got, err)
		}
	}
	if err := clients[0].Close(); err != nil {
		t.Error(err)
	}
	reason := errors.New("the machine is gone")
	cancel(reason)
	if err := <-ended; !errors.Is(err, reason) {
		t.Errorf("Serve ended with %v", err)
	}
	if n := ends.Load(); n != 4 {
		t.Errorf("%d connections were reported as ended", n)
	}
	for _, c := range clients[1:] {
		if _, err := c.ReadAt(make([]byte, 1), 0); err == nil || errors.Is(err, syscall.EIO) {
			t.Errorf("reading after the end: %v", err)
		}
		<-c.done
		c.conn.Close()
	}
	if _, err := net.Dial("unix", listener.Addr().String()); err == nil {
		t.Error("the socket still takes connections")
	}
}

func TestListen(t *testing.T) {
	path := t.TempDir() + "/nbd"
	listener, err := expose.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	if _, err := expose.Listen(path); err == nil {
		t.Error("two listen on one socket")
	}
	listener.Close()
	if _, err := expose.Listen(t.TempDir() + "/" + strings.Repeat("x", 108)); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("a path too long: %v", err)
	}
	if _, err := expose.Listen(t.TempDir() + "/gone/nbd"); err == nil {
		t.Error("a directory that is not there is taken")
	}
}
