package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api/process"
)

// killTimeout bounds the killing of a process whose context has ended.
const killTimeout = 30 * time.Second

// events are the two kinds of streams that follow a process.
type events interface {
	Receive() bool
	Event() *process.ProcessEvent
	Err() error
	Close() error
}

type startStream struct {
	*connect.ServerStreamForClient[process.StartResponse]
}

func (s startStream) Event() *process.ProcessEvent { return s.Msg().GetEvent() }

type connectStream struct {
	*connect.ServerStreamForClient[process.ConnectResponse]
}

func (s connectStream) Event() *process.ProcessEvent { return s.Msg().GetEvent() }

// begin waits for the start event.
func (p *Process) begin(s events) error {
	if s.Receive() {
		if e, ok := s.Event().GetEvent().(*process.ProcessEvent_Start); ok {
			p.pid = int(e.Start.GetPid())
			return nil
		}
	}
	err := p.client.rpcError(s.Err())
	if err == nil {
		err = errors.New("the guest did not say that it started")
	}
	p.stop()
	s.Close()
	return err
}

// follow hands output on until the process ends.
func (p *Process) follow(s events, stdout, stderr io.Writer) {
	defer close(p.done)
	defer p.stop()
	defer s.Close()
	var werr error
	write := func(w io.Writer, data []byte) {
		if w != nil && werr == nil {
			_, werr = w.Write(data)
		}
	}
	for s.Receive() {
		switch e := s.Event().GetEvent().(type) {
		case *process.ProcessEvent_Data:
			switch out := e.Data.GetOutput().(type) {
			case *process.ProcessEvent_DataEvent_Stdout:
				write(stdout, out.Stdout)
			case *process.ProcessEvent_DataEvent_Pty:
				write(stdout, out.Pty)
			case *process.ProcessEvent_DataEvent_Stderr:
				write(stderr, out.Stderr)
			}
		case *process.ProcessEvent_End:
			p.end = ExitStatus{
				Code:   int(e.End.GetExitCode()),
				Signal: syscall.Signal(e.End.GetSignal()),
				OOM:    e.End.GetOomKilled(),
				Text:   e.End.GetStatus(),
			}
			if werr != nil {
				p.err = fmt.Errorf("writing the output of process %d: %w", p.pid, werr)
			}
			return
		}
	}
	err := p.client.rpcError(s.Err())
	if err == nil {
		err = ErrClosed
	}
	p.err = fmt.Errorf("following process %d in the guest: %w", p.pid, err)
}

// killOnCancel ends the process when its context does.
func (p *Process) killOnCancel(ctx context.Context) {
	<-p.done
	// Following ends with ctx: then the process may still be there.
	if ctx.Err() != nil && p.end.Text == "" {
		killCtx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		p.Signal(killCtx, syscall.SIGKILL)
	}
}
