package expose_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// script is a connection whose client says all it has to say at once, and then hangs up. What the server says is kept.
type script struct {
	net.Conn // for the methods that are not called
	in       *bytes.Reader
	out      bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// say serves a disk to a client that says all of words, and returns the server's words after its greeting.
func say(t testing.TB, options expose.NBDOptions, disk expose.Disk, words ...[]byte) ([]byte, error) {
	t.Helper()
	conn := &script{in: bytes.NewReader(bytes.Join(words, nil))}
	err := expose.NewNBDServer(disk, options).ServeConn(context.Background(), conn)
	answer, ok := bytes.CutPrefix(conn.out.Bytes(), []byte("NBDMAGICIHAVEOPT\x00\x03"))
	if !ok {
		t.Fatalf("the greeting is %q", conn.out.Bytes())
	}
	return answer, err
}

func option(number uint32, data ...any) []byte {
	var p []byte
	for _, d := range data {
		switch d := d.(type) {
		case string:
			p = append(p, lengthAnd(d)...)
		default:
			p, _ = binary.Append(p, binary.BigEndian, d)
		}
	}
	return appendOption(nil, number, p)
}

// kinds returns the types of the option replies in an answer.
func kinds(t *testing.T, answer []byte) []uint32 {
	t.Helper()
	var kinds []uint32
	for len(answer) > 0 {
		if len(answer) < 20 || binary.BigEndian.Uint64(answer) != 0x3e889045565a9 {
			t.Fatalf("%x is no option reply", answer)
		}
		kinds = append(kinds, binary.BigEndian.Uint32(answer[12:]))
		answer = answer[20+binary.BigEndian.Uint32(answer[16:]):]
	}
	return kinds
}

var (
	fixed = []byte{0, 0, 0, 3}
	bye   = option(2)
)

func TestOptions(t *testing.T) {
	const (
		ack     = 1
		server  = 2
		info    = 3
		meta    = 4
		unsup   = 1<<31 + 1
		invalid = 1<<31 + 3
		unknown = 1<<31 + 6
	)
	structured := option(8)
	for name, c := range map[string]struct {
		words []byte
		want  []uint32
	}{
		"abort":                      {nil, nil},
		"list":                       {option(3), []uint32{server, ack}},
		"list with data":             {option(3, "x"), []uint32{invalid}},
		"starttls":                   {option(5), []uint32{unsup}},
		"peek":                       {option(4), []uint32{unsup}},
		"extended headers":           {option(11), []uint32{unsup}},
		"an option of the future":    {option(1<<31, "whatever"), []uint32{unsup}},
		"info":                       {option(6, "root", uint16(0)), []uint32{info, info, info, ack}},
		"info of the default export": {option(6, "", uint16(2), uint16(1), uint16(3)), []uint32{info, info, info, ack}},
		"info of another export":     {option(6, "boot", uint16(0)), []uint32{unknown}},
		"go to another export":       {option(7, "boot", uint16(0)), []uint32{unknown}},
		"info without data":          {option(6), []uint32{invalid}},
		"info with too few requests": {option(6, "root", uint16(2), uint16(1)), []uint32{invalid}},
		"info with a rest":           {option(6, "root", uint16(0), uint8(0)), []uint32{invalid}},
		"info with a long name":      {option(6, uint32(1<<31), "root"), []uint32{invalid}},
		"structured":                 {structured, []uint32{ack}},
		"structured with data":       {option(8, uint8(1)), []uint32{invalid}},
		"list contexts":              {option(9, "root", uint32(0)), []uint32{meta, ack}},
		"list base contexts":         {option(9, "root", uint32(1), "base:"), []uint32{meta, ack}},
		"list other contexts":        {option(9, "root", uint32(2), "qemu:", "base:x"), []uint32{ack}},
		"set context too early":      {option(10, "root", uint32(1), "base:allocation"), []uint32{invalid}},
		"set context":                {bytes.Join([][]byte{structured, option(10, "root", uint32(2), "qemu:dirty", "base:allocation")}, nil), []uint32{ack, meta, ack}},
		"set no context":             {bytes.Join([][]byte{structured, option(10, "root", uint32(0))}, nil), []uint32{ack, ack}},
		"set a wildcard":             {bytes.Join([][]byte{structured, option(10, "root", uint32(1), "base:")}, nil), []uint32{ack, ack}},
		"set context elsewhere":      {bytes.Join([][]byte{structured, option(10, "boot", uint32(1), "base:allocation")}, nil), []uint32{ack, unknown}},
		"contexts without a count":   {bytes.Join([][]byte{structured, option(10, "root")}, nil), []uint32{ack, invalid}},
		"more contexts than data":    {bytes.Join([][]byte{structured, option(10, "root", uint32(1<<32-1), "base:allocation")}, nil), []uint32{ack, invalid}},
		"contexts with a rest":       {bytes.Join([][]byte{structured, option(10, "root", uint32(0), uint8(9))}, nil), []uint32{ack, invalid}},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := say(t, expose.NBDOptions{Name: "root"}, exposetest.Overlay(t, make([]byte, 4096)), fixed, c.words, bye)
			if err != nil {
				t.Fatal(err)
			}
			got := kinds(t, answer)
			want := append(c.want, ack)
			if len(got) != len(want) {
				t.Fatalf("answers %d, want %d", got, want)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("answers %d, want %d", got, want)
				}
			}
		})
	}
}

func TestBrokenHandshakes(t *testing.T) {
	for name, c := range map[string]struct {
		words []byte
		want  string // "" for a proper end
		hung  bool
	}{
		"a look":                   {nil, "", false},
		"half the flags":           {[]byte{0, 0}, "the client's flags", true},
		"unknown flags":            {[]byte{0, 0, 0, 7}, "unknown flags 0x7", false},
		"no option":                {fixed, "reading an option", true},
		"half an option":           {append(fixed, "IHAVE"...), "reading an option", true},
		"not an option":            {append(fixed, "GET / HTTP/1.1\r\n"...), "an option begins with", false},
		"an option cut short":      {append(fixed, option(7, "root", uint16(0))[:20]...), "bytes of option 7", true},
		"an option of 4 GiB":       {append(fixed, "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...), "option 7 has 4294967295 bytes", false},
		"another export":           {append(fixed, appendOption(nil, 1, []byte("boot"))...), `no export "boot"`, false},
		"not fixed":                {append([]byte{0, 0, 0, 0}, option(7, "", uint16(0))...), "fixed newstyle", false},
		"options without end":      {append(fixed, bytes.Repeat(option(5), 1000)...), "after 128 options", false},
		"gone before transmission": {append(fixed, option(6, "root", uint16(0))...), "reading an option", true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := say(t, expose.NBDOptions{Name: "root"}, exposetest.Overlay(t, make([]byte, 4096)), c.words)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, expose.ErrHungUp) != c.hung {
				t.Errorf("%v, want %q, hung up: %v", err, c.want, c.hung)
			}
		})
	}
}

func TestExportNameOfOldClients(t *testing.T) {
	read := appendRequest(nil, 0, 0, 7, 4096, 4)
	disk := exposetest.Overlay(t, []byte(strings.Repeat("data", 2048)))
	for name, c := range map[string]struct {
		flags   byte
		padding int
	}{"not fixed": {0, 124}, "fixed": {1, 124}, "without zeroes": {3, 0}} {
		t.Run(name, func(t *testing.T) {
			answer, err := say(t, expose.NBDOptions{Name: "root"}, disk, []byte{0, 0, 0, c.flags}, appendOption(nil, 1, []byte("root")), read)
			if err != nil {
				t.Fatal(err)
			}
			if len(answer) != 10+c.padding+16+4 || binary.BigEndian.Uint64(answer) != 8192 || !bytes.HasSuffix(answer, []byte("\x00\x00\x00\x07data")) {
				t.Errorf("the answer is %x", answer)
			}
		})
	}
}

// TestHandshakeLimitEndsWithIt: a machine that leaves its disk alone for long must find it there again.
func TestHandshakeLimitEndsWithIt(t *testing.T) {
	for limit := 500 * time.Millisecond; ; limit *= 4 {
		server := expose.NewNBDServer(exposetest.Overlay(t, make([]byte, 4096)), expose.NBDOptions{Handshake: limit})
		theirs, ended := connect(t, context.Background(), server)
		client, err := dialNBD(theirs, "", true)
		if err != nil {
			theirs.Close()
			if failed := <-ended; limit > time.Minute || !errors.Is(failed, os.ErrDeadlineExceeded) {
				t.Fatalf("handshake: %v, and the server ended with %v", err, failed)
			}
			continue // a machine so busy needs more time to shake hands
		}
		time.Sleep(limit + limit/5)
		if _, err := client.ReadAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
		if err := errors.Join(client.Close(), <-ended); err != nil {
			t.Error(err)
		}
		return
	}
}

// TestSlowHandshake has a client that dawdles over its options.
func TestSlowHandshake(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	server := expose.NewNBDServer(exposetest.Overlay(t, make([]byte, 4096)), expose.NBDOptions{Handshake: 50 * time.Millisecond})
	ended := make(chan error, 1)
	go func() { ended <- server.ServeConn(context.Background(), ours) }()
	go io.Copy(io.Discard, theirs)
	for {
		if _, err := theirs.Write([]byte{0}); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server ended with %v", err)
	}
}
