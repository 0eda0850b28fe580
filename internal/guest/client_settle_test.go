package guest

import (
	"bytes"
	"io"
	"net"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/guest/api"
)

// chunks is a connection that gives out its bytes in pieces of any size.
type chunks struct {
	net.Conn
	t    *rapid.T
	rest []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := rapid.IntRange(1, len(c.rest)).Draw(c.t, "read")
	n = copy(p, c.rest[:n])
	c.rest = c.rest[n:]
	return n, nil
}

var serverSettings = api.AppendFrame(nil, api.Settings, []byte{0, 5, 0, 0x10, 0, 0, 0, 3, 0, 0, 0, 100})

// stale is what may be left of a session before: frames, of which the first and the last may be torn.
func stale(t *rapid.T) []byte {
	var b []byte
	for _, kind := range rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 6, 7, 8, api.WakeFrame}), 0, 4).Draw(t, "kinds") {
		b = api.AppendFrame(b, kind, bytes.Repeat([]byte{0, 4}, rapid.IntRange(0, 3000).Draw(t, "half size")))
	}
	return b[rapid.IntRange(0, len(b)).Draw(t, "torn"):]
}

func TestSettlingDropsTheSessionBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := string(serverSettings) + "and so on"
		s := &settled{Conn: &chunks{t: t, rest: append(stale(t), want...)}}
		got, err := io.ReadAll(s)
		if err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	})
}

func TestAnswerAmongTheSessionBefore(t *testing.T) {
	answer := func(generation string) []byte {
		a := api.WakeAnswer{Report: api.WakeReport{Generation: generation, Epoch: 3}}
		return api.AppendFrame(nil, api.WakeFrame, a.AppendWire(nil))
	}
	rapid.Check(t, func(t *rapid.T) {
		b := append(stale(t), serverSettings...) // of the session before, all of it
		b = append(b, answer("another")...)
		b = append(b, stale(t)...)
		b = append(b, answer("mine")...)
		b = append(b, "rest"...)
		s := &settled{Conn: &chunks{t: t, rest: b}}
		a, err := s.answer("mine")
		if err != nil || a.Report.Generation != "mine" || a.Report.Epoch != 3 {
			t.Fatalf("%+v, %v", a, err)
		}
		if rest, err := io.ReadAll(s); err != nil || string(rest) != "rest" {
			t.Fatalf("after it comes %q, %v", rest, err)
		}
	})
	s := &settled{Conn: &chunks{rest: nil}}
	if _, err := s.answer("mine"); err != io.EOF {
		t.Errorf("no answer: %v", err)
	}
}

func FuzzSettle(f *testing.F) {
	f.Add(serverSettings, "g")
	f.Add((&api.WakeAnswer{}).AppendWire([]byte("\x00\x00\x09\xe5\x00\x00\x00\x00\x00")), "")
	f.Fuzz(func(t *testing.T, b []byte, generation string) {
		if at := findSettings(b); at >= 0 && at+settingsMin > len(b) {
			t.Errorf("settings at %d of %d", at, len(b))
		}
		if a, end := findAnswer(b, generation); end > len(b) || end > 0 && a.Status == 0 && a.Report.Generation != generation {
			t.Errorf("%+v, to %d of %d", a, end, len(b))
		}
	})
}
