package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api/process"
)

// inputSize is how much input travels in one message.
const inputSize = 128 << 10

// WriteStdin feeds data to the process, all of it unless an error says so.
func (p *Process) WriteStdin(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), inputSize)
		_, err := p.client.processes.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{
			Process: pidSelector(p.pid), Input: p.inputOf(data[:n]),
		}))
		if err != nil {
			return fmt.Errorf("writing to process %d in the guest: %w", p.pid, p.client.rpcError(err))
		}
		data = data[n:]
	}
	return nil
}

// CloseStdin gives the process an end of file.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.client.processes.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: pidSelector(p.pid)}))
	if err != nil {
		return fmt.Errorf("closing the input of process %d in the guest: %w", p.pid, p.client.rpcError(err))
	}
	return nil
}

func (p *Process) inputOf(data []byte) *process.ProcessInput {
	if p.tty {
		return &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: data}}
	}
	return &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}}
}

// Input returns a stream of input to the process, faster than WriteStdin for
// much of it. Its Close waits until all was taken; it does not end the
// process's input.
func (p *Process) Input(ctx context.Context) io.WriteCloser {
	return &inputStream{p: p, stream: p.client.processes.StreamInput(ctx)}
}

// inputStream sends pieces of input in order.
type inputStream struct {
	p      *Process
	mu     sync.Mutex
	stream *connect.ClientStreamForClient[process.StreamInputRequest, process.StreamInputResponse]
	named  bool
}

func (s *inputStream) Write(data []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.named {
		s.named = true
		start := &process.StreamInputRequest_StartEvent{Process: pidSelector(s.p.pid)}
		if err := s.stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: start}}); err != nil {
			return 0, s.fail(err)
		}
	}
	for n < len(data) {
		piece := data[n:min(len(data), n+inputSize)]
		event := &process.StreamInputRequest_DataEvent{Input: s.p.inputOf(piece)}
		if err := s.stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: event}}); err != nil {
			return n, s.fail(err)
		}
		n += len(piece)
	}
	return n, nil
}

// fail returns why the guest ended the stream, which a failed send does not say.
func (s *inputStream) fail(err error) error {
	if errors.Is(err, io.EOF) {
		_, err = s.stream.CloseAndReceive()
	}
	return fmt.Errorf("writing to process %d in the guest: %w", s.p.pid, s.p.client.rpcError(err))
}

func (s *inputStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.stream.CloseAndReceive(); err != nil {
		return s.fail(err)
	}
	return nil
}

// feed sends all of r as input, then the end of it.
func (p *Process) feed(r io.Reader) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	w := p.Input(ctx)
	_, err := io.CopyBuffer(onlyWriter{w}, onlyReader{r}, make([]byte, inputSize))
	if w.Close() == nil && err == nil {
		if p.tty {
			p.WriteStdin(ctx, []byte{4}) // a terminal's end of file
		} else {
			p.CloseStdin(ctx)
		}
	}
}
