package farmemory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

// process is a server as the one who started it knows it.
type process struct {
	key   block.Digest // of a shared one
	users int          // guarded by the owner's lock
	cmd   *exec.Cmd
	conn  *net.UnixConn
	in    *bufio.Reader
	fd    int
	pages chan snapshot.Pages
	gone  chan struct{} // closed when the process has ended

	asking sync.Mutex

	mu      sync.Mutex
	ending  bool
	failure error
	hear    []*Memory
}

// start starts a server and returns when it serves.
func (o *Servers) start(ctx context.Context, s *snapshot.Snapshot, options Options) (*process, error) {
	header, err := s.Memory().Header().MarshalBinary()
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "memory server"), os.NewFile(uintptr(fds[1]), "memory client")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close() // it was copied; the server is to see the end of the one that is left
	if err != nil {
		return nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	p := &process{users: 1, cmd: o.Command(), conn: conn.(*net.UnixConn), fd: -1, pages: make(chan snapshot.Pages, 1), gone: make(chan struct{})}
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for the one who has the machine
	if err := p.cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("starting the memory's server: %w", err)
	}
	theirs.Close()
	go func() {
		_ = p.cmd.Wait() // what it says at its end is in the process's state
		close(p.gone)
	}()
	stop := context.AfterFunc(ctx, func() {
		_ = p.cmd.Process.Kill()
		conn.Close()
	})
	err = p.open(request{Header: len(header), Prefetch: options.Prefetch, Record: options.Record}, header)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(err, p.end())
	}
	go p.listen()
	return p, nil
}

// open sends the request and takes the file.
func (p *process) open(r request, header []byte) error {
	if err := send(p.conn, r); err != nil {
		return p.died(err)
	}
	if _, err := p.conn.Write(header); err != nil {
		return p.died(err)
	}
	line, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := p.conn.ReadMsgUnix(line, rights)
	if err != nil || n == 0 {
		return p.died(err)
	}
	if all, err := unix.ParseSocketControlMessage(rights[:rn]); err == nil && len(all) == 1 {
		if fds, err := unix.ParseUnixRights(&all[0]); err == nil && len(fds) == 1 {
			p.fd = fds[0]
			unix.CloseOnExec(p.fd)
		}
	}
	p.in = bufio.NewReader(io.MultiReader(bytes.NewReader(line[:n]), p.conn))
	m, err := p.message()
	switch {
	case err != nil:
		return p.died(err)
	case m.Unsupported:
		return fmt.Errorf("%w: %s", errors.ErrUnsupported, strings.TrimPrefix(m.Refused, errors.ErrUnsupported.Error()+": "))
	case m.Refused != "":
		return errors.New(m.Refused)
	case !m.Ready || p.fd < 0:
		return errors.New("its server handed over no file")
	}
	return nil
}

func (p *process) message() (m message, err error) {
	line, err := readLine(p.in)
	if err == nil {
		err = json.Unmarshal(line, &m)
	}
	return m, err
}

// lastWords is how long a server whose socket is closed may take to end.
const lastWords = 5 * time.Second

// died tells of the process's end, of which err is a consequence.
func (p *process) died(err error) error {
	p.conn.Close() // then it ends, if it has not
	select {
	case <-p.gone:
	case <-time.After(lastWords):
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
	if p.cmd.ProcessState.Success() {
		return fmt.Errorf("its server has left: %w", errors.Join(err))
	}
	return fmt.Errorf("its server has died (%v)", p.cmd.ProcessState)
}

// listen hears what the server has to say, to its end.
func (p *process) listen() {
	for {
		m, err := p.message()
		switch {
		case err != nil:
			p.mu.Lock()
			ending := p.ending
			p.mu.Unlock()
			if !ending {
				p.fail(fmt.Errorf("the machine's memory can't be had any more: %w", p.died(err)))
			}
			return
		case m.Fault != nil:
			p.fail(m.Fault)
			p.tell(sayNoted)
		case m.Pages != nil:
			select {
			case p.pages <- *m.Pages:
			default:
			}
		}
	}
}

func (p *process) tell(what string) {
	p.asking.Lock()
	defer p.asking.Unlock()
	_ = send(p.conn, question{what}) // if it is gone, that is noticed elsewhere
}

// fail lets all who use the memory know.
func (p *process) fail(err error) {
	p.mu.Lock()
	if p.failure != nil {
		p.mu.Unlock()
		return
	}
	p.failure = err
	hear := p.hear
	p.mu.Unlock()
	for _, m := range hear {
		m.failed(err)
	}
}

// join has m hear of failures, one that was before too.
func (p *process) join(m *Memory) {
	p.mu.Lock()
	failure := p.failure
	p.hear = append(p.hear, m)
	p.mu.Unlock()
	if failure != nil {
		m.failed(failure)
	}
}

func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure == nil
}

// end ends the process. It needs no time to do so: nothing of it is kept.
func (p *process) end() error {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	p.conn.Close()
	_ = p.cmd.Process.Kill() // it may be waiting for what is far away
	<-p.gone
	if p.fd >= 0 {
		return unix.Close(p.fd)
	}
	return nil
}

// part is the opposite of join.
func (p *process) part(m *Memory) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.hear {
		if other == m {
			p.hear = append(append([]*Memory{}, p.hear[:i]...), p.hear[i+1:]...)
			return
		}
	}
}
