package block

import (
	"encoding/json"
	"errors"

	"github.com/google/uuid"
)

// maxTold bounds the text of an error that is told, in bytes: it has to fit into a
// message.
const maxTold = 8 << 10

// Told is an error as one process tells it to another, as JSON: its text and, if it
// is of damage, which. So it is known as such where it arrives too.
type Told struct {
	Text    string        `json:"text"`
	Corrupt *CorruptError `json:"corrupt,omitempty"`
}

// Tell makes an error ready to be told; nil stays nil.
func Tell(err error) *Told {
	if err == nil {
		return nil
	}
	text := err.Error()
	t := &Told{Text: text[:min(len(text), maxTold)]}
	errors.As(err, &t.Corrupt)
	return t
}

// Error is the text.
func (t *Told) Error() string { return t.Text }

// Unwrap returns the *CorruptError, if it is of one.
func (t *Told) Unwrap() error {
	if t.Corrupt == nil {
		return nil // and no error that holds a nil pointer
	}
	return t.Corrupt
}

// corruptJSON is a CorruptError as JSON.
type corruptJSON struct {
	Artifact string    `json:"artifact"`
	Layer    uuid.UUID `json:"layer"`
	Frame    int       `json:"frame"`
	Offset   int64     `json:"offset"`
	Length   int       `json:"length"`
	Text     string    `json:"text"`
}

// MarshalJSON implements [json.Marshaler]. What is wrong with the frame becomes text.
func (e *CorruptError) MarshalJSON() ([]byte, error) {
	c := corruptJSON{Artifact: e.Artifact, Layer: e.Layer, Frame: e.Frame, Offset: e.Offset, Length: e.Length}
	if e.Err != nil {
		text := e.Err.Error()
		c.Text = text[:min(len(text), maxTold)]
	}
	return json.Marshal(c)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (e *CorruptError) UnmarshalJSON(data []byte) error {
	var c corruptJSON
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	*e = CorruptError{Artifact: c.Artifact, Layer: c.Layer, Frame: c.Frame, Offset: c.Offset, Length: c.Length, Err: errors.New(c.Text)}
	return nil
}
