package block

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// passOn tells an error as it goes from process to process.
func passOn(t *testing.T, err error) error {
	t.Helper()
	data, e := json.Marshal(Tell(err))
	if e != nil {
		t.Fatal(e)
	}
	told := new(Told)
	if e := json.Unmarshal(data, told); e != nil {
		t.Fatal(e)
	}
	return told
}

// An error that was told says what it said, and is of damage if it was.
func TestTold(t *testing.T) {
	damage := &CorruptError{Artifact: "memfile of x", Layer: uuid.New(), Frame: 3, Offset: 5, Length: 7, Err: io.ErrUnexpectedEOF}
	for _, err := range []error{io.EOF, fmt.Errorf("reading memory: %w", damage)} {
		told := passOn(t, passOn(t, err)) // also twice
		if told.Error() != err.Error() {
			t.Errorf("%q became %q", err, told)
		}
		var got *CorruptError
		if want := errors.As(err, new(*CorruptError)); errors.As(told, &got) != want {
			t.Errorf("%q is of damage: %v, it was: %v", told, !want, want)
		} else if want && got.Error() != damage.Error() {
			t.Errorf("the damage was %q, it became %q", damage, got)
		}
	}
	if told := Tell(nil); told != nil {
		t.Errorf("nothing was told as %v", told)
	}
	long := strings.Repeat("ä", maxTold)
	if data, err := json.Marshal(Tell(&CorruptError{Err: errors.New(long)})); err != nil || len(data) > 3*maxTold {
		t.Errorf("an error of %d bytes is told in %d (%v)", len(long), len(data), err)
	}
}

// FuzzTold reads what another process may say.
func FuzzTold(f *testing.F) {
	f.Add([]byte(`{"text":"a","corrupt":{"artifact":"b","layer":"11111111-1111-4111-8111-111111111111","frame":1,"offset":2,"length":3,"text":"c"}}`))
	f.Add([]byte(`{"corrupt":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		told := new(Told)
		if json.Unmarshal(data, told) == nil && told.Error() != told.Text {
			t.Errorf("%q says %q", told.Text, told.Error())
		}
		_ = errors.Unwrap(told)
		if errors.As(told, new(*CorruptError)) != (told.Corrupt != nil) {
			t.Error("an error of nothing")
		}
	})
}
