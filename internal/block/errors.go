package block

import (
	"fmt"

	"github.com/google/uuid"
)

// CorruptError says that stored bytes are not those that were written: a bit
// flipped, a file cut short, one layer's file in the place of another's.
type CorruptError struct {
	Artifact string    // whose reader found it, such as "memfile of snapshot <id>"
	Layer    uuid.UUID // the snapshot that stored the bytes
	Frame    int       // index in the layer
	Offset   int64     // of the frame in the layer's stored bytes
	Length   int       // of the frame, as stored
	Err      error     // what is wrong with it
}

// Error names artifact, layer, frame and place.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt: frame %d of the layer of snapshot %s (%d bytes at %d): %v",
		e.Artifact, e.Frame, e.Layer, e.Length, e.Offset, e.Err)
}

// Unwrap returns what is wrong with the frame.
func (e *CorruptError) Unwrap() error { return e.Err }
