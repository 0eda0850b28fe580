package expose_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/expose/exposetest"
)

// FuzzNBD has a client that says anything at all.
func FuzzNBD(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Join([][]byte{fixed, option(3), option(5), option(9, "", uint32(1), "base:"), option(6, "x", uint16(1), uint16(3)), bye}, nil))
	for _, structured := range []bool{true, false} {
		for command := range uint16(9) {
			f.Add(append(appendRequest(chosen(structured), 1, command, 1, 512, 4), "data"...))
		}
	}
	content := exposetest.Random(1, 1<<20)
	f.Fuzz(func(t *testing.T, words []byte) {
		_, _ = say(t, expose.NBDOptions{Name: "x"}, exposetest.Overlay(t, content), words)
	})
}

// FuzzNBDRequests has a client that chooses the export properly and then sends arbitrary requests. Whatever they are, each gets one reply.
func FuzzNBDRequests(f *testing.F) {
	for command := range uint16(9) {
		f.Add(append(appendRequest(nil, 1, command, 1, 512, 4), "data"...))
	}
	f.Add(append(append(appendRequest(nil, 0, 1, 1, 1<<40, 4), "data"...), appendRequest(nil, 0, 2, 0, 0, 0)...))
	content := exposetest.Random(1, 1<<20)
	f.Fuzz(func(t *testing.T, words []byte) {
		answer, err := say(t, expose.NBDOptions{}, exposetest.Overlay(t, content), chosen(true), words)
		open := map[uint64]int{}
		for len(words) >= 28 && binary.BigEndian.Uint32(words) == 0x25609513 {
			command, length := binary.BigEndian.Uint16(words[6:]), uint64(binary.BigEndian.Uint32(words[24:]))
			if command == 2 {
				break
			}
			cookie := binary.BigEndian.Uint64(words[8:])
			words = words[28:]
			if command == 1 {
				if length > uint64(len(words)) {
					break
				}
				words = words[length:]
			}
			open[cookie]++
		}
		for _, r := range replies(t, answer) {
			open[r.cookie]--
		}
		for cookie, n := range open {
			if n != 0 {
				t.Errorf("request %d has %d replies too few (the server ended with %v)", cookie, n, err)
			}
		}
	})
}
