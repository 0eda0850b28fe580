package guest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/internal/guest/api/process"
)

// Size is that of a terminal, in characters.
type Size struct{ Cols, Rows uint32 }

// Command describes a process to start in the guest.
type Command struct {
	Args []string          // the first is a path, or a name for the PATH of the process
	Env  map[string]string // added to the sandbox's
	Dir  string            // empty: the sandbox's default; relative: from there
	User string            // name or number, with ":group" if wanted; empty: the default
	Tag  string            // a name to find the process by; may be empty
	TTY  *Size             // run on a terminal of this size; its output comes to Stdout

	// Stdin is read and fed to the process, which sees its end. Nil: an empty
	// standard input, unless OpenStdin keeps it open for WriteStdin.
	Stdin     io.Reader
	OpenStdin bool

	// Stdout and Stderr take the output, each from one goroutine at a time. A
	// slow writer slows the process down. Nil: dropped.
	Stdout, Stderr io.Writer

	// Detach lets the process go on when ctx ends, which only stops following
	// it. Without it the process is killed then.
	Detach bool
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int            // passed to exit; -1 if a signal ended it
	Signal syscall.Signal // that ended it; 0: none
	OOM    bool           // the guest ran out of memory and ended it
	Text   string         // in words: "exit status 3", "signal: killed"
}

// Success tells whether the process exited with 0.
func (s ExitStatus) Success() bool { return s.Code == 0 && s.Signal == 0 }

// ShellCode is the status as a shell gives it: 128 plus the signal's number for
// a process that a signal ended.
func (s ExitStatus) ShellCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

func (s ExitStatus) String() string {
	if s.OOM {
		return s.Text + " (the guest is out of memory)"
	}
	return s.Text
}

// ProcessInfo is a running process of the guest.
type ProcessInfo struct {
	PID  int
	Tag  string
	Args []string
	Dir  string
}

// Process is a process in the guest that is being followed.
type Process struct {
	client *Client
	pid    int
	tty    bool

	stop context.CancelFunc // ends the following
	done chan struct{}
	end  ExitStatus
	err  error
}

// Start runs a command and returns once it runs. Failures to start wrap
// fs.ErrNotExist for a program that is not there and fs.ErrPermission for one
// that cannot be executed.
//
// A deadline of ctx kills the process in the guest even if the host is gone by
// then.
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	if len(cmd.Args) == 0 {
		return nil, errors.New("starting a process in the guest: no command given")
	}
	stdin := cmd.Stdin != nil || cmd.OpenStdin
	msg := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd.Args[0], Args: cmd.Args[1:], Envs: cmd.Env},
		Stdin:   &stdin,
	}
	if cmd.Dir != "" {
		msg.Process.Cwd = &cmd.Dir
	}
	if cmd.Tag != "" {
		msg.Tag = &cmd.Tag
	}
	if cmd.TTY != nil {
		msg.Pty = &process.PTY{Size: &process.PTY_Size{Cols: cmd.TTY.Cols, Rows: cmd.TTY.Rows}}
	}
	req := connect.NewRequest(msg)
	setUser(req.Header(), cmd.User)
	follow, stop := context.WithCancel(ctx)
	if cmd.Detach {
		follow, stop = context.WithCancel(context.WithoutCancel(ctx))
		defer context.AfterFunc(ctx, stop)() // until it has started
	}
	stream, err := c.processes.Start(follow, req)
	if err != nil {
		stop()
		return nil, fmt.Errorf("starting %s in the guest: %w", cmd.Args[0], c.rpcError(err))
	}
	p := &Process{client: c, tty: cmd.TTY != nil, stop: stop, done: make(chan struct{})}
	if err := p.begin(startStream{stream}); err != nil {
		return nil, fmt.Errorf("starting %s in the guest: %w", cmd.Args[0], err)
	}
	go p.follow(startStream{stream}, cmd.Stdout, cmd.Stderr)
	if !cmd.Detach {
		go p.killOnCancel(ctx)
	}
	if cmd.Stdin != nil {
		go p.feed(cmd.Stdin)
	}
	return p, nil
}

// Attach follows a process that is already running, from its next output on. A
// process that ended a short while ago still tells how. When ctx ends only the
// following does.
func (c *Client) Attach(ctx context.Context, pid int, stdout, stderr io.Writer) (*Process, error) {
	return c.attach(ctx, pidSelector(pid), fmt.Sprintf("process %d", pid), stdout, stderr)
}

// AttachTag is Attach for the process started with a tag.
func (c *Client) AttachTag(ctx context.Context, tag string, stdout, stderr io.Writer) (*Process, error) {
	sel := &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: tag}}
	return c.attach(ctx, sel, fmt.Sprintf("process %q", tag), stdout, stderr)
}

func (c *Client) attach(ctx context.Context, sel *process.ProcessSelector, name string, stdout, stderr io.Writer) (*Process, error) {
	ctx, stop := context.WithCancel(ctx)
	stream, err := c.processes.Connect(ctx, connect.NewRequest(&process.ConnectRequest{Process: sel}))
	if err != nil {
		stop()
		return nil, fmt.Errorf("attaching to %s in the guest: %w", name, c.rpcError(err))
	}
	p := &Process{client: c, stop: stop, done: make(chan struct{})}
	if err := p.begin(connectStream{stream}); err != nil {
		return nil, fmt.Errorf("attaching to %s in the guest: %w", name, err)
	}
	go p.follow(connectStream{stream}, stdout, stderr)
	return p, nil
}

// Processes lists what was started in the guest and has not ended.
func (c *Client) Processes(ctx context.Context) ([]ProcessInfo, error) {
	res, err := c.processes.List(ctx, connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		return nil, fmt.Errorf("listing processes of the guest: %w", c.rpcError(err))
	}
	var all []ProcessInfo
	for _, p := range res.Msg.GetProcesses() {
		all = append(all, ProcessInfo{
			PID:  int(p.GetPid()),
			Tag:  p.GetTag(),
			Args: append([]string{p.GetConfig().GetCmd()}, p.GetConfig().GetArgs()...),
			Dir:  p.GetConfig().GetCwd(),
		})
	}
	return all, nil
}

// PID is the process's number in the guest.
func (p *Process) PID() int { return p.pid }

// Done is closed once Wait would not block.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, once it has and all its output is
// written. An error means that this is not known, or that output could not be
// written.
func (p *Process) Wait() (ExitStatus, error) {
	<-p.done
	return p.end, p.err
}

// Detach stops following the process, which goes on.
func (p *Process) Detach() {
	p.stop()
	<-p.done
}

// Signal sends a signal to the process and its process group.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	_, err := p.client.processes.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{
		Process: pidSelector(p.pid), Signal: process.Signal(sig),
	}))
	if err != nil {
		return fmt.Errorf("signalling process %d in the guest: %w", p.pid, p.client.rpcError(err))
	}
	return nil
}

// Resize tells the process that its terminal has a new size.
func (p *Process) Resize(ctx context.Context, size Size) error {
	_, err := p.client.processes.Update(ctx, connect.NewRequest(&process.UpdateRequest{
		Process: pidSelector(p.pid),
		Pty:     &process.PTY{Size: &process.PTY_Size{Cols: size.Cols, Rows: size.Rows}},
	}))
	if err != nil {
		return fmt.Errorf("resizing the terminal of process %d in the guest: %w", p.pid, p.client.rpcError(err))
	}
	return nil
}

func pidSelector(pid int) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: uint32(pid)}}
}

// setUser says as whom a request acts: Basic credentials without a password,
// or with the group in its place.
func setUser(h http.Header, user string) {
	if user == "" {
		return
	}
	if !strings.Contains(user, ":") {
		user += ":"
	}
	h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user)))
}
