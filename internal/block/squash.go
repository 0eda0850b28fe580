package block

import (
	"context"
	"fmt"
)

// squashSize is how much is read at once, in bytes.
const squashSize = 1 << 20

// Squash writes the whole image to w, which is new, has the image's size and
// comes without a base to Finish: what that returns is a header of one layer.
// progress is as in [Reader.CopyTo].
func (r *Reader) Squash(ctx context.Context, w *Writer, progress func(n int64)) error {
	if r.err != nil {
		return r.err
	}
	report := serial(progress)
	buf := make([]byte, squashSize)
	for _, run := range r.h.Runs {
		for !run.IsHole() && run.Length > 0 {
			p := buf[:min(run.Length, squashSize)]
			if _, err := r.readRun(ctx, run, p); err != nil {
				return fmt.Errorf("squashing: %w", err)
			}
			if err := w.Write(run.Offset, p); err != nil {
				return fmt.Errorf("squashing %s: %w", r.layers.artifact, err)
			}
			report(int64(len(p)))
			run = run.clip(run.Offset+int64(len(p)), run.End())
		}
	}
	return nil
}
