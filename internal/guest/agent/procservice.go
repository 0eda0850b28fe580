package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/process"
)

// keepaliveHeader is the seconds of silence after which a stream wants a sign
// of life. Absent: none is sent.
const keepaliveHeader = "Keepalive-Ping-Interval"

// maxTag bounds a process's tag, in bytes.
const maxTag = 1024

// processService implements process.Process.
type processService struct{ s *Server }

func (ps *processService) List(context.Context, *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	res := &process.ListResponse{}
	for _, p := range ps.s.table.list() {
		info := &process.ProcessInfo{Config: p.config, Pid: uint32(p.pid)}
		if p.tag != "" {
			info.Tag = &p.tag
		}
		res.Processes = append(res.Processes, info)
	}
	return connect.NewResponse(res), nil
}

func (ps *processService) Start(ctx context.Context, req *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	msg := req.Msg
	if len(msg.GetTag()) > maxTag {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("tag of %d bytes is longer than %d", len(msg.GetTag()), maxTag))
	}
	acc, err := ps.s.rpcAccount(req.Header())
	if err != nil {
		return err
	}
	cmd, err := newCommand(msg.GetProcess(), acc, ps.s.Context(), msg.GetPty() != nil)
	if err != nil {
		return rpcStartError(err)
	}
	var io *stdio
	if msg.GetPty() != nil {
		io, err = openTerminal(msg.GetPty().GetSize(), acc)
	} else {
		io, err = openPipes(msg.Stdin == nil || *msg.Stdin)
	}
	if err != nil {
		return rpcStartError(err)
	}
	var f *follower
	var leave func()
	p, err := ps.s.run(ctx, cmd, msg.GetProcess(), msg.GetTag(), io, func(p *proc) {
		f, leave = p.hub.follow(ctx)
		ps.s.table.add(p)
	}, ps.s.table.retire)
	if err != nil {
		return rpcStartError(err)
	}
	defer leave()
	// A deadline is the process's own: the caller gave the command that long.
	// A caller that merely leaves does not end it.
	if deadline, ok := ctx.Deadline(); ok {
		p.killAfter(time.Until(deadline))
	}
	return p.serve(ctx, f, keepalive(req.Header()), func(e *process.ProcessEvent) error {
		return stream.Send(&process.StartResponse{Event: e})
	})
}

func (ps *processService) Connect(ctx context.Context, req *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	p, err := ps.find(req.Msg.GetProcess(), true)
	if err != nil {
		return err
	}
	f, leave := p.hub.follow(ctx)
	defer leave()
	return p.serve(ctx, f, keepalive(req.Header()), func(e *process.ProcessEvent) error {
		return stream.Send(&process.ConnectResponse{Event: e})
	})
}

// serve sends the events of a process to one follower, to the end.
func (p *proc) serve(ctx context.Context, f *follower, every time.Duration, send func(*process.ProcessEvent) error) error {
	start := &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: uint32(p.pid)}}}
	if err := send(start); err != nil {
		return err
	}
	var tick <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	forward := func(c *chunk) error {
		defer c.release()
		return send(&c.event)
	}
	for {
		select {
		case c := <-f.chunks:
			if err := forward(c); err != nil {
				return err
			}
		case <-tick:
			alive := &process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}}
			if err := send(alive); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ended:
			// All output was queued before the end was announced.
			for {
				select {
				case c := <-f.chunks:
					if err := forward(c); err != nil {
						return err
					}
					continue
				default:
				}
				return send(&process.ProcessEvent{Event: &process.ProcessEvent_End{End: p.end}})
			}
		}
	}
}

func (ps *processService) Update(_ context.Context, req *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	p, err := ps.find(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if p.tty == nil {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal"))
		}
		if err := resize(p.tty, size); err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
	}
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

func (ps *processService) SendInput(ctx context.Context, req *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	p, err := ps.find(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := p.feed(ctx, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

func (ps *processService) StreamInput(ctx context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var p *proc
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			found, err := ps.find(e.Start.GetProcess(), false)
			if err != nil {
				return nil, err
			}
			p = found
		case *process.StreamInputRequest_Data:
			if p == nil {
				return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("input came before the process was named"))
			}
			if err := p.feed(ctx, e.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return connect.NewResponse(&process.StreamInputResponse{}), nil
}

// feed writes one piece of input to where it belongs.
func (p *proc) feed(ctx context.Context, in *process.ProcessInput) error {
	var data []byte
	switch v := in.GetInput().(type) {
	case *process.ProcessInput_Stdin:
		if p.tty != nil {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal, not a standard input"))
		}
		data = v.Stdin
	case *process.ProcessInput_Pty:
		if p.tty == nil {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal"))
		}
		data = v.Pty
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("no input given"))
	}
	if p.input == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process was started without input"))
	}
	err := p.input.write(ctx, data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	}
	return connect.NewError(connect.CodeFailedPrecondition, err)
}

func (ps *processService) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	sig := unix.Signal(req.Msg.GetSignal())
	if sig < 1 || sig > 64 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("no such signal: %d", sig))
	}
	p, err := ps.find(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := p.signal(sig); err != nil {
		return nil, connect.NewError(connect.CodeNotFound, err)
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

func (ps *processService) CloseStdin(_ context.Context, req *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p, err := ps.find(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if p.tty != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("a terminal cannot be closed: send byte 4 (Ctrl-D) instead"))
	}
	if p.input == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process was started without input"))
	}
	// Closing twice is no error: the process has its end of file.
	p.input.close()
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

// find returns the process that a request selects.
func (ps *processService) find(sel *process.ProcessSelector, endedToo bool) (*proc, error) {
	var match func(*proc) bool
	var name string
	switch v := sel.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		match, name = func(p *proc) bool { return p.pid == int(v.Pid) }, "pid "+strconv.Itoa(int(v.Pid))
	case *process.ProcessSelector_Tag:
		match, name = func(p *proc) bool { return p.tag != "" && p.tag == v.Tag }, "tag "+strconv.Quote(v.Tag)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no process selected"))
	}
	if p := ps.s.table.find(match, endedToo); p != nil {
		return p, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no process with %s", name))
}

// keepalive reads how often a silent stream wants a sign of life; 0: never.
func keepalive(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get(keepaliveHeader), 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// rpcStartError gives a failure to start the code of the public API, and the
// finer reason beside it.
func rpcStartError(err error) error {
	for _, scarce := range []error{unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC} {
		if errors.Is(err, scarce) {
			return connect.NewError(connect.CodeResourceExhausted, err)
		}
	}
	e := connect.NewError(connect.CodeInvalidArgument, err)
	if reason := (*startError)(nil); errors.As(err, &reason) {
		e.Meta().Set(api.Reason, reason.reason)
	}
	return e
}
