package expose_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// chosen is a client's part of a handshake that ends with the export chosen: with chunks and base:allocation, or the old way.
func chosen(structured bool) []byte {
	if !structured {
		return append(bytes.Clone(fixed), appendOption(nil, 1, nil)...)
	}
	return bytes.Join([][]byte{fixed, option(8), option(10, "", uint32(1), "base:allocation"), option(7, "", uint16(0))}, nil)
}

// reply is one reply, as far as one can tell without knowing the request.
type reply struct {
	cookie uint64
	errno  uint32
	chunk  uint16
	data   []byte
}

// replies takes apart what a server said to a client that began with chosen(true).
func replies(t testing.TB, answer []byte) []reply {
	t.Helper()
	for binary.BigEndian.Uint64(answer) == 0x3e889045565a9 {
		option, kind := binary.BigEndian.Uint32(answer[8:]), binary.BigEndian.Uint32(answer[12:])
		answer = answer[20+binary.BigEndian.Uint32(answer[16:]):]
		if option == 7 && kind == 1 {
			break
		}
	}
	var all []reply
	for len(answer) > 0 {
		if len(answer) < 16 {
			t.Fatalf("%x is no reply", answer)
		}
		r := reply{cookie: binary.BigEndian.Uint64(answer[8:])}
		switch magic := binary.BigEndian.Uint32(answer); magic {
		case 0x67446698:
			r.errno = binary.BigEndian.Uint32(answer[4:])
			answer = answer[16:]
		case 0x668e33ef:
			r.chunk = binary.BigEndian.Uint16(answer[6:])
			end := 20 + int(binary.BigEndian.Uint32(answer[16:]))
			if end > len(answer) {
				t.Fatalf("a chunk of %d bytes in an answer of %d", end, len(answer))
			}
			r.data, answer = answer[20:end], answer[end:]
			if r.chunk == 1<<15+1 {
				r.errno = binary.BigEndian.Uint32(r.data)
			}
		default:
			t.Fatalf("a reply begins with %#x", magic)
		}
		all = append(all, r)
	}
	return all
}

func TestRequestsRefused(t *testing.T) {
	const einval, eperm, enospc = 22, 1, 28
	const size = 40 << 20
	content := bytes.Repeat([]byte("data"), size/4)
	for name, c := range map[string]struct {
		request  []byte
		readOnly bool
		want     uint32
	}{
		"unknown command":              {appendRequest(nil, 0, 99, 5, 0, 0), false, einval},
		"resize":                       {appendRequest(nil, 0, 8, 5, 0, 0), false, einval},
		"unknown flag":                 {appendRequest(nil, 1<<10, 0, 5, 0, 512), false, einval},
		"read with another's flag":     {appendRequest(nil, 1<<1, 0, 5, 0, 512), false, einval},
		"flush with another's flag":    {appendRequest(nil, 1<<2, 3, 5, 0, 0), false, einval},
		"read past the end":            {appendRequest(nil, 0, 0, 5, size-1, 2), false, einval},
		"read at a huge offset":        {appendRequest(nil, 0, 0, 5, 1<<64-1, 2), false, einval},
		"read 4 GiB":                   {appendRequest(nil, 0, 0, 5, 0, 1<<32-1), false, einval},
		"read more than allowed":       {appendRequest(nil, 0, 0, 5, 0, 32<<20+1), false, einval},
		"read all that is allowed":     {appendRequest(nil, 0, 0, 5, 0, 32<<20), false, 0},
		"write past the end":           {append(appendRequest(nil, 0, 1, 5, size, 2), "xx"...), false, enospc},
		"write at a huge offset":       {append(appendRequest(nil, 0, 1, 5, 1<<63, 2), "xx"...), false, enospc},
		"zero past the end":            {appendRequest(nil, 0, 6, 5, 1, size), false, enospc},
		"zero 4 GiB":                   {appendRequest(nil, 0, 6, 5, 0, 1<<32-1), false, enospc},
		"trim past the end":            {appendRequest(nil, 0, 4, 5, 4096, size), false, einval},
		"block status of nothing":      {appendRequest(nil, 0, 7, 5, 0, 0), false, einval},
		"block status past the end":    {appendRequest(nil, 0, 7, 5, 0, size+1), false, einval},
		"write to a read-only export":  {append(appendRequest(nil, 0, 1, 5, 0, 2), "xx"...), true, eperm},
		"zero of a read-only export":   {appendRequest(nil, 0, 6, 5, 0, 2), true, eperm},
		"trim of a read-only export":   {appendRequest(nil, 0, 4, 5, 0, 2), true, eperm},
		"read of a read-only export":   {appendRequest(nil, 0, 0, 5, 0, 2), true, 0},
		"flush with a senseless range": {appendRequest(nil, 0, 3, 5, 1<<63, 9), false, 0},
		"read of nothing at the end":   {appendRequest(nil, 0, 0, 5, size, 0), false, 0},
		"write of nothing":             {appendRequest(nil, 1, 1, 5, 0, 0), false, 0},
		"trim of nothing":              {appendRequest(nil, 1, 4, 5, size, 0), false, 0},
		"read in one piece":            {appendRequest(nil, 1<<2, 0, 5, 0, 1<<20), false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			disk := exposetest.Overlay(t, content)
			next := appendRequest(nil, 0, 0, 6, 0, 4) // the connection must go on in step
			answer, err := say(t, expose.NBDOptions{ReadOnly: c.readOnly}, disk, chosen(true), c.request, next, appendRequest(nil, 0, 2, 0, 0, 0))
			if err != nil {
				t.Fatal(err)
			}
			got := replies(t, answer)
			if len(got) != 2 {
				t.Fatalf("%d replies: %+v", len(got), got)
			}
			for _, r := range got {
				switch r.cookie {
				case 5:
					if r.errno != c.want {
						t.Errorf("error %d, want %d", r.errno, c.want)
					}
				case 6:
					if !bytes.HasSuffix(r.data, []byte("data")) {
						t.Errorf("the next request reads %q", r.data)
					}
				default:
					t.Errorf("a reply to %d", r.cookie)
				}
			}
			if n := disk.Dirty().Len(); n != 0 {
				t.Errorf("%d blocks have changed", n)
			}
		})
	}
}

func TestBlockStatusMustBeChosen(t *testing.T) {
	for name, options := range map[string][]byte{
		"never chosen":   bytes.Repeat(option(8), 4),
		"only listed":    bytes.Join([][]byte{option(8), option(8), option(9, "", uint32(0))}, nil),
		"chosen no more": bytes.Join([][]byte{option(8), option(10, "", uint32(1), "base:allocation"), option(10, "", uint32(0))}, nil),
	} {
		t.Run(name, func(t *testing.T) { blockStatusIsRefused(t, options) })
	}
}

func blockStatusIsRefused(t *testing.T, options []byte) {
	words := bytes.Join([][]byte{fixed, options, option(7, "", uint16(0)), appendRequest(nil, 0, 7, 5, 0, 4096)}, nil)
	answer, err := say(t, expose.NBDOptions{}, exposetest.Overlay(t, make([]byte, 4096)), words)
	if err != nil {
		t.Fatal(err)
	}
	if got := replies(t, answer); len(got) != 1 || got[0].errno != 22 {
		t.Errorf("%+v", got)
	}
}

// TestBlockStatusIsBounded asks for the status of more extents than a reply may hold.
func TestBlockStatusIsBounded(t *testing.T) {
	disk := exposetest.Overlay(t, make([]byte, 64<<20))
	for at := int64(0); at < disk.Size(); at += 8192 {
		if err := disk.Trim(at, 4096); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := say(t, expose.NBDOptions{}, disk, chosen(true), appendRequest(nil, 0, 7, 5, 0, 64<<20), appendRequest(nil, 1<<3, 7, 6, 4096, 64<<20-4096))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range replies(t, answer) {
		if want := map[uint64]int{5: 4 + 8*4095, 6: 4 + 8}[r.cookie]; r.chunk != 5 || len(r.data) != want {
			t.Errorf("chunk %d of %d bytes, want %d", r.chunk, len(r.data), want)
		}
	}
}

func TestBrokenStreams(t *testing.T) {
	for name, c := range map[string]struct {
		words []byte
		want  string
		hung  bool
	}{
		"garbage":            {bytes.Repeat([]byte("garbage"), 10), "a request begins with 0x67617262", false},
		"half a request":     {appendRequest(nil, 0, 0, 1, 0, 512)[:20], "reading a request", true},
		"half a payload":     {append(appendRequest(nil, 0, 1, 1, 0, 512), "half"...), "the 512 bytes of a write", true},
		"half a bad payload": {append(appendRequest(nil, 0, 1, 1, 1<<40, 512), "half"...), "the 512 bytes of a write", true},
		"a write of 4 GiB":   {appendRequest(nil, 0, 1, 1, 0, 1<<32-1), "4294967295 bytes at once", false},
	} {
		t.Run(name, func(t *testing.T) {
			content := []byte(strings.Repeat("data", 1024))
			disk := exposetest.Overlay(t, content)
			_, err := say(t, expose.NBDOptions{}, disk, chosen(true), c.words)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, expose.ErrHungUp) != c.hung {
				t.Errorf("%v, want %q, hung up: %v", err, c.want, c.hung)
			}
			if !bytes.Equal(readAll(t, disk), content) {
				t.Error("the disk has changed")
			}
		})
	}
}

// TestLimitsComeBeforeAllocation announces gigabytes and looks at what the server takes from the heap for them.
func TestLimitsComeBeforeAllocation(t *testing.T) {
	disk := exposetest.Overlay(t, make([]byte, 4096))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, words := range [][]byte{
		append(fixed, "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...),
		append(chosen(true), appendRequest(nil, 0, 1, 1, 0, 1<<32-1)...),
		append(chosen(true), appendRequest(nil, 0, 0, 1, 0, 1<<32-1)...),
		append(chosen(true), appendRequest(nil, 0, 1, 1, 0, 32<<20)...), // within the limit, but not within the disk
	} {
		_, _ = say(t, expose.NBDOptions{}, disk, words)
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 2<<20 {
		t.Errorf("%d bytes were allocated", taken)
	}
}
