package agent

import (
	"context"
	"errors"
	"os"
	"time"
)

// errInputClosed says that a process takes no more input.
var errInputClosed = errors.New("the process's input is closed")

// input is the writing end of a process's standard input or terminal. Writers
// take turns, so that no piece is torn by another.
type input struct {
	f    *os.File
	turn chan struct{}
}

func newInput(f *os.File) *input { return &input{f: f, turn: make(chan struct{}, 1)} }

// write feeds data, waiting while the process does not read, until ctx ends.
func (in *input) write(ctx context.Context, data []byte) error {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		in.f.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := in.f.Write(data)
	if !stop() {
		<-interrupted
		in.f.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	}
	return errInputClosed
}

// close gives the process an end of file. It does not wait for writers: one
// that is stuck fails.
func (in *input) close() error {
	if in.f.Close() != nil {
		return errInputClosed
	}
	return nil
}
