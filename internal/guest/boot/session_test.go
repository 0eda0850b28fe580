package boot

import (
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/guest/api"
)

const greeting = api.Preface

// frame is an HTTP/2 frame of n bytes of payload.
func frame(n int) []byte {
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 1}, bytes.Repeat([]byte("P"), n)...)
}

// However the bytes are cut into reads, a session ends exactly where the next client's greeting begins, and not at a P in a payload.
func TestFramesEndAtTheNextGreeting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := []byte(greeting)
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 5000), 0, 5).Draw(t, "frames") {
			stream = append(stream, frame(n)...)
		}
		end := len(stream)
		stream = append(stream, greeting...)
		stream = append(stream, frame(3)...)

		f := frames{skip: int64(len(greeting))}
		at := 0
		for at < len(stream) {
			n := rapid.IntRange(1, len(stream)-at).Draw(t, "read")
			kept := f.next(stream[at : at+n])
			at += kept
			if kept < n {
				break
			}
		}
		if at != end {
			t.Errorf("the session has %d bytes, want %d", at, end)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte(greeting + string(frame(5)) + greeting))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole, single := frames{skip: int64(len(greeting))}, frames{skip: int64(len(greeting))}
		want := whole.next(stream)
		got := 0
		for got < len(stream) && single.next(stream[got:got+1]) == 1 {
			got++
		}
		if got != want {
			t.Errorf("%d bytes in one read, %d byte by byte", want, got)
		}
	})
}

// pipe is a port whose host end is a socket: it can be closed, but not opened again.
func pipe(t *testing.T) (*Port, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	host := os.NewFile(uintptr(fds[1]), "host")
	port, err := newPort(os.NewFile(uintptr(fds[0]), "port"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close(); host.Close() })
	return port, host
}

func accept(t *testing.T, p *Port) net.Conn {
	t.Helper()
	c, err := p.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestGreetingStartsASession(t *testing.T) {
	port, host := pipe(t)
	first := greeting + string(frame(10))
	if _, err := host.WriteString(first + greeting + string(frame(20))); err != nil {
		t.Fatal(err)
	}
	one := accept(t, port)
	got, err := io.ReadAll(one)
	if err != nil || string(got) != first {
		t.Fatalf("the first session read %q, %v", got, err)
	}
	if _, err := one.Write([]byte("too late")); err == nil {
		t.Error("a session that is over writes to the next")
	}
	one.Close()
	two := accept(t, port)
	want := greeting + string(frame(20))
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(two, buf); err != nil || string(buf) != want {
		t.Errorf("the second session read %q, %v", buf, err)
	}
	if _, err := two.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(host, answer); err != nil || string(answer) != "hello" {
		t.Errorf("the host read %q, %v", answer, err)
	}
}

// A host that has gone within a frame is followed by one whose greeting no framing would find. Only a wake after it tells it from a payload.
func TestSessionAfterATornFrame(t *testing.T) {
	port, host := pipe(t)
	one := accept(t, port)
	torn := greeting + string(frame(1000)[:500])
	for _, text := range []string{torn, greeting + string(frame(3))[:9]} {
		if _, err := host.WriteString(text); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(text))
		if _, err := io.ReadFull(one, buf); err != nil || string(buf) != text {
			t.Fatalf("the first session read %q, %v", buf, err)
		}
	}
	wake := string(api.AppendFrame([]byte(greeting), api.WakeFrame, []byte("who")))
	if _, err := host.WriteString(wake); err != nil {
		t.Fatal(err)
	}
	if n, err := one.Read(make([]byte, 10)); err != io.EOF {
		t.Fatalf("the first session goes on with %d bytes, %v", n, err)
	}
	one.Close()
	buf := make([]byte, len(wake))
	if _, err := io.ReadFull(accept(t, port), buf); err != nil || string(buf) != wake {
		t.Errorf("the second session read %q, %v", buf, err)
	}
}

// What the guest has given up is drained, up to a greeting.
func TestClosedSessionIsDrained(t *testing.T) {
	port, host := pipe(t)
	one := accept(t, port)
	host.WriteString("GET / HTTP/1.1\r\n")
	buf := make([]byte, 3)
	if _, err := io.ReadFull(one, buf); err != nil {
		t.Fatal(err)
	}
	one.Close()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := port.Accept(); accepted <- c }()
	select {
	case <-accepted:
		t.Fatal("a session begins before the host has ended the last one")
	case <-time.After(50 * time.Millisecond):
	}
	host.WriteString(greeting)
	two := <-accepted
	if two == nil {
		t.Fatal("no session after the greeting")
	}
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(two, got); err != nil || string(got) != greeting {
		t.Errorf("the second session read %q, %v", got, err)
	}
}

// Close frees whoever is inside a read or a write, and nothing of the session gets through afterwards.
func TestCloseEndsReadsAndWrites(t *testing.T) {
	port, _ := pipe(t)
	c := accept(t, port)
	ended := make(chan error, 2)
	go func() { _, err := c.Read(make([]byte, 10)); ended <- err }()
	go func() {
		for { // until the socket is full
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	c.Close()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a read of nothing succeeds")
			}
		case <-time.After(time.Minute):
			t.Fatal("a read or write goes on")
		}
	}
	if err := c.SetDeadline(time.Time{}); err == nil {
		t.Error("a closed session changes the port's deadline")
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestHostGone(t *testing.T) {
	port, host := pipe(t)
	c := accept(t, port)
	host.Close()
	if _, err := c.Read(make([]byte, 10)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a write to nobody succeeds")
	}
}
