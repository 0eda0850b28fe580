package expose

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
)

// attribute is one of netlink's: length and type, two bytes each, and the value, filled up to four bytes. All in the order of an Intel or ARM machine.
func attribute(kind string, value string) string {
	raw, err := hex.DecodeString(value)
	if err != nil {
		panic(err)
	}
	head := []byte{byte(len(raw) + 4), 0}
	return hex.EncodeToString(head) + kind + value + strings.Repeat("00", (4-len(raw)%4)%4)
}

// TestConnection holds what the kernel is told against linux/nbd-netlink.h, byte for byte.
func TestConnection(t *testing.T) {
	if nl.NativeEndian().Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are those of a little-endian machine")
	}
	c := connection{size: 24 << 20, flags: nbdHasFlags | nbdReadOnly | nbdSendFlush, timeout: 600, socket: 9, mark: "spore-1"}
	var got []byte
	for _, a := range c.attributes() {
		got = append(got, a.Serialize()...)
	}
	want := attribute("0200", "0000800100000000") + // bytes
		attribute("0300", "0002000000000000") + // bytes of a block
		attribute("0400", "5802000000000000") + // seconds
		attribute("0500", "0700000000000000") + // the server's flags
		attribute("0600", "0000000000000000") + // the client's flags
		attribute("0700", attribute("0100", attribute("0100", "09000000"))) + // sockets, socket, descriptor
		attribute("0a00", "73706f72652d3100") // the mark
	if hex.EncodeToString(got) != want {
		t.Errorf("%x\nwant\n%s", got, want)
	}
}

func TestConnected(t *testing.T) {
	if nl.NativeEndian().Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are those of a little-endian machine")
	}
	for what, c := range map[string]struct {
		answer string
		index  int
		err    bool
	}{
		"an answer":                  {"01010000" + attribute("0100", "07000000"), 7, false},
		"with what we do not ask":    {"01010000" + attribute("0400", "0100000000000000") + attribute("0100", "00010000"), 256, false},
		"nothing":                    {"", 0, true},
		"half a head":                {"0101", 0, true},
		"another command":            {"05010000" + attribute("0100", "07000000"), 0, true},
		"no number":                  {"01010000", 0, true},
		"a number of two bytes":      {"01010000" + attribute("0100", "0700"), 0, true},
		"longer than what there is":  {"01010000" + "40000100" + "07000000", 0, true},
		"shorter than its own head":  {"01010000" + "02000100" + "07000000", 0, true},
		"cut off behind a good head": {"01010000" + "08000100", 0, true},
	} {
		raw, err := hex.DecodeString(c.answer)
		if err != nil {
			t.Fatal(err)
		}
		if index, err := connected(raw); index != c.index || (err != nil) != c.err {
			t.Errorf("%s: %d, %v", what, index, err)
		}
	}
}

func FuzzConnected(f *testing.F) {
	f.Add([]byte{1, 1, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0})
	f.Add([]byte{1, 1, 0, 0, 2, 0, 1, 0})
	f.Fuzz(func(t *testing.T, answer []byte) {
		if index, err := connected(answer); err == nil && !bytes.Contains(answer, nl.Uint32Attr(uint32(index))) {
			t.Errorf("%d is not in %x", index, answer)
		}
	})
}

// TestReadOnlyDisk has nothing change, and tells holes where the base can.
func TestReadOnlyDisk(t *testing.T) {
	d := readOnlyDisk{Zeros(1 << 20)}
	_, err := d.WriteAt([]byte{1}, 0)
	for _, err := range []error{err, d.Zero(0, 4096, true), d.Trim(0, 4096)} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a change: %v", err)
		}
	}
	if err := d.Flush(context.Background()); err != nil {
		t.Error(err)
	}
	if n, hole := d.Extent(4096, 1<<20); n != 1<<20-4096 || !hole {
		t.Errorf("%d, %v", n, hole)
	}
	if n, hole := (readOnlyDisk{plain{}}).Extent(1, 5); n != 5 || hole {
		t.Errorf("of a base that can't tell: %d, %v", n, hole)
	}
}

// plain is a Base and nothing else.
type plain struct{}

func (plain) Size() int64 { return 4096 }

func (plain) ReadAt([]byte, int64) (int, error) { return 0, errors.New("broken") }

// TestTracedDisk tells what was asked for, and what failed.
func TestTracedDisk(t *testing.T) {
	var out strings.Builder
	for _, base := range []Base{plain{}, Zeros(4096)} {
		d := tracedDisk{readOnlyDisk{base}, log.New(&out, "", 0)}
		_, _ = d.ReadAt(make([]byte, 512), 1024)
		_, _ = d.WriteAt([]byte{1}, 7)
		_, _, _ = d.Flush(context.Background()), d.Zero(1, 2, true), d.Trim(3, 4)
	}
	for _, want := range []string{"READ 512 bytes at 1024: broken\n", "READ 512 bytes at 1024\n", "WRITE 1 bytes at 7: permission denied\n", "FLUSH", "ZERO 2 bytes at 1", "TRIM 4 bytes at 3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// TestReleaseNothing is what follows every mount that has ended well.
func TestReleaseNothing(t *testing.T) {
	if err := ReleaseNBD("spore-of-nobody"); err != nil {
		t.Error(err)
	}
}

// TestServeSettled serves a client that says nothing before its first request, as the kernel does.
func TestServeSettled(t *testing.T) {
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ended := make(chan error, 1)
	server := NewNBDServer(readOnlyDisk{Zeros(1 << 20)}, NBDOptions{ReadOnly: true})
	go func() { ended <- server.serveConn(context.Background(), ours, true) }()
	ask := func(command byte, length byte) {
		request := append([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, command}, make([]byte, 19)...)
		if _, err := theirs.Write(append(request, length)); err != nil {
			t.Fatal(err)
		}
	}
	answer := make([]byte, 16)
	for command, want := range map[byte]byte{nbdCmdRead: 0, nbdCmdTrim: nbdEPERM} {
		ask(command, 8)
		if _, err := io.ReadFull(theirs, answer); err != nil || !bytes.Equal(answer[:8], []byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, want}) {
			t.Fatalf("command %d: %x, %v", command, answer, err)
		}
		if command == nbdCmdRead {
			if _, err := io.ReadFull(theirs, answer[:8]); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask(nbdCmdDisc, 0)
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
