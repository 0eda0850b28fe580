package api

import (
	"reflect"
	"testing"
	"testing/quick"

	"github.com/google/go-cmp/cmp"
)

// equateEmpty makes nil and empty the same: the payload does not tell them apart.
var equateEmpty = cmp.FilterValues(func(x, y any) bool {
	vx, vy := reflect.ValueOf(x), reflect.ValueOf(y)
	return vx.IsValid() && vy.IsValid() && vx.Type() == vy.Type() &&
		(vx.Kind() == reflect.Slice || vx.Kind() == reflect.Map) && vx.Len() == 0 && vy.Len() == 0
}, cmp.Comparer(func(_, _ any) bool { return true }))

// TestEveryFieldOfAWakeTravels fills in the structs by their types, so that a
// field which is added to one and forgotten in the payload shows.
func TestEveryFieldOfAWakeTravels(t *testing.T) {
	identity := func(want Identity) bool {
		got, err := ParseIdentity(want.AppendWire(nil))
		if err != nil {
			t.Error(err)
			return false
		}
		if diff := cmp.Diff(want, got, equateEmpty); diff != "" {
			t.Error(diff)
			return false
		}
		return true
	}
	answer := func(want WakeAnswer) bool {
		want.Status &= 0x3ff
		got, err := ParseWakeAnswer(want.AppendWire(nil))
		if err != nil || got != want {
			t.Errorf("%v: %s", err, cmp.Diff(want, got))
			return false
		}
		return true
	}
	for _, f := range []any{identity, answer} {
		if err := quick.Check(f, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestTornWakes(t *testing.T) {
	id := Identity{
		Generation: "g", Entropy: make([]byte, 40), Net: &Net{DNS: []string{"a", "b"}},
		Context: &Context{Env: map[string]string{"A": "1"}},
	}
	whole := id.AppendWire(nil)
	for n := range whole {
		if got, err := ParseIdentity(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes gave %+v", n, len(whole), got)
		}
	}
	if _, err := ParseIdentity(append(whole, 0)); err == nil {
		t.Error("a byte too many was taken")
	}
	whole[0]++
	if _, err := ParseIdentity(whole); err == nil {
		t.Error("another version was taken")
	}
}

func TestFrames(t *testing.T) {
	b := AppendFrame(nil, WakeFrame, make([]byte, 0x012345))
	kind, size := ParseFrameHeader([FrameHeader]byte(b))
	if kind != WakeFrame || size != 0x012345 || len(b) != FrameHeader+size {
		t.Errorf("type %#x, %#x of %d bytes", kind, size, len(b))
	}
}

func FuzzParseWake(f *testing.F) {
	id := Identity{Generation: "g", Entropy: []byte("e"), Net: &Net{DNS: []string{"a"}}, Context: &Context{Env: map[string]string{"A": "1"}}}
	f.Add(id.AppendWire(nil))
	f.Add((&WakeAnswer{Status: 500, Message: "no"}).AppendWire(nil))
	f.Add([]byte{wireVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := ParseIdentity(b); err == nil {
			again, err := ParseIdentity(id.AppendWire(nil))
			if err != nil || cmp.Diff(id, again, equateEmpty) != "" {
				t.Fatalf("%+v, then %+v, %v", id, again, err)
			}
		}
		if a, err := ParseWakeAnswer(b); err == nil && a.Status >= 0 {
			if again, err := ParseWakeAnswer(a.AppendWire(nil)); err != nil || a != again {
				t.Fatalf("%+v, then %+v, %v", a, again, err)
			}
		}
	})
}
