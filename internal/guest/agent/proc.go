package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api/process"
)

// A process may leave others behind that still hold its output open. What was
// written before it ended is always delivered; then its end is reported as soon
// as the output has been silent for settleIdle, or after settleMax.
const (
	settleIdle = 100 * time.Millisecond
	settleMax  = 2 * time.Second
	maxPipe    = 1 << 20 // no unprivileged pipe holds more
)

// errEnded says that a request came too late for its process.
var errEnded = errors.New("the process has ended")

// proc is a process that was started here.
type proc struct {
	config *process.ProcessConfig
	tag    string
	pid    int
	pidfd  *os.File
	input  *input   // nil: none was asked for
	tty    *os.File // nil: pipes
	hub    *hub

	oomKills  func() int64 // so far, where it was born
	oomBefore int64

	mu     sync.Mutex
	exited bool // reaped: the pid may be someone else's now
	killed bool // by us, with SIGKILL
	timer  *time.Timer

	dead  chan struct{}                  // closed when the process is reaped
	ended chan struct{}                  // closed when the output is through as well
	end   *process.ProcessEvent_EndEvent // valid once ended is closed
}

// run starts cmd and everything that serves it. ctx is for the start only. attach runs before the first
// output can flow; done runs once the end is known.
func (s *Server) run(ctx context.Context, cmd *command, cfg *process.ProcessConfig, tag string, io *stdio, attach func(*proc), done func(*proc)) (*proc, error) {
	group := s.options.Group()
	p := &proc{
		config: cfg, tag: tag, tty: io.tty, hub: newHub(),
		oomKills: func() int64 { return oomKills(group) + s.options.Kills() },
		dead:     make(chan struct{}), ended: make(chan struct{}),
	}
	p.oomBefore = p.oomKills()
	switch {
	case io.tty != nil:
		p.input = newInput(io.tty)
	case io.stdin != nil:
		p.input = newInput(io.stdin)
	}
	pid, err := s.options.Children.start(ctx, func() (pid int, err error) {
		pid, p.pidfd, err = spawn(cmd, io, group)
		if errors.Is(err, unix.EAGAIN) { // the group has filled up since it was chosen
			group = s.options.Group()
			p.oomBefore = p.oomKills()
			pid, p.pidfd, err = spawn(cmd, io, group)
		}
		return pid, err
	})
	if err != nil {
		io.closeAll()
		return nil, err
	}
	io.closeChild()
	p.pid = pid
	attach(p)

	var pumps sync.WaitGroup
	pump := func(f *os.File, event func([]byte) *process.ProcessEvent_DataEvent) {
		if f == nil {
			return
		}
		pumps.Add(1)
		go p.pump(f, event, pumps.Done)
	}
	pump(io.stdout, stdoutEvent)
	pump(io.stderr, stderrEvent)
	pump(io.tty, ttyEvent)
	go func() {
		status := p.wait()
		s.options.Children.reaped(p.pid)
		if p.tty == nil && p.input != nil {
			p.input.close()
		}
		close(p.dead)
		// Readers that wait for output look up and see that no more is due.
		for _, f := range []*os.File{io.stdout, io.stderr, io.tty} {
			if f != nil {
				f.SetReadDeadline(time.Now())
			}
		}
		pumps.Wait()
		p.end = p.endEvent(status)
		done(p)
		close(p.ended)
	}()
	return p, nil
}

func stdoutEvent(b []byte) *process.ProcessEvent_DataEvent {
	return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}}
}

func stderrEvent(b []byte) *process.ProcessEvent_DataEvent {
	return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: b}}
}

func ttyEvent(b []byte) *process.ProcessEvent_DataEvent {
	return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Pty{Pty: b}}
}

// pump moves output from f to the followers until it has settled, then calls
// settled and keeps emptying f: what the process left behind may go on writing.
func (p *proc) pump(f *os.File, event func([]byte) *process.ProcessEvent_DataEvent, settled func()) {
	defer f.Close()
	p.pumpUntilSettled(f, event)
	settled()
	for {
		f.SetReadDeadline(time.Time{})
		// The waiter's wake-up call may come as late as this.
		if _, err := io.Copy(io.Discard, onlyReader{f}); !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// onlyReader hides the methods that would let io.Copy splice.
type onlyReader struct{ io.Reader }

func (p *proc) pumpUntilSettled(f *os.File, event func([]byte) *process.ProcessEvent_DataEvent) {
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	var since time.Time // when this pump learned that the process is dead
	late := 0           // bytes read after that
	read := conn.Read
	for {
		var limit time.Time
		select {
		case <-p.dead:
			now := time.Now()
			if since.IsZero() {
				since = now
			}
			if now.Sub(since) > settleMax {
				if late > maxPipe {
					return
				}
				read = once(conn) // a pipe that is found empty holds nothing of the process's any more, whoever goes on writing
			}
			limit = now.Add(settleIdle)
			f.SetReadDeadline(limit)
		default:
		}
		c, n, err := readChunk(read)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The waiter's own wake-up call comes as a deadline too: only a
			// deadline set here, and reached, means silence.
			if limit.IsZero() || time.Now().Before(limit) {
				continue
			}
			// And only if nothing is there: on a busy machine it may have been
			// reached before anybody looked.
			c, n, err = readChunk(once(conn))
		}
		if n > 0 {
			if !since.IsZero() {
				late += n
			}
			c.event.Event = &process.ProcessEvent_Data{Data: event(c.buf[:n])}
			p.hub.publish(c)
		}
		if err != nil {
			return // silence; end of file; or EIO: nobody holds the terminal
		}
	}
}

// once is the Read of a file that is not waited for, whatever its deadline.
func once(conn syscall.RawConn) func(func(fd uintptr) bool) error {
	return func(f func(fd uintptr) bool) error {
		return conn.Control(func(fd uintptr) { f(fd) })
	}
}

// readChunk waits, as read does, for output and reads what there is. While it waits
// it holds no memory: most processes are silent most of the time. An end of file is
// an error.
func readChunk(read func(func(fd uintptr) bool) error) (c *chunk, n int, err error) {
	var readErr error
	err = read(func(fd uintptr) bool {
		c = newChunk()
		n, readErr = retryEINTR(func() (int, error) { return unix.Read(int(fd), c.buf) })
		if n > 0 {
			return true
		}
		c.release()
		n = 0
		return readErr != unix.EAGAIN
	})
	switch {
	case err != nil:
		return nil, 0, err
	case readErr != nil:
		return nil, 0, readErr
	case n == 0:
		return nil, 0, io.EOF
	}
	return c, n, nil
}

// wait blocks, without holding a thread, until the process ends, and reaps it.
func (p *proc) wait() unix.WaitStatus {
	defer p.pidfd.Close()
	if conn, err := p.pidfd.SyscallConn(); err == nil {
		conn.Read(func(fd uintptr) bool {
			var info siginfoChild
			_, err := retryEINTR(func() (int, error) {
				return 0, waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
			})
			return err != nil || info.pid != 0
		})
	}
	// Signals and the reaping exclude each other: a pid that was given up may
	// name another process at once.
	p.mu.Lock()
	defer p.mu.Unlock()
	var status unix.WaitStatus
	retryEINTR(func() (int, error) { return unix.Wait4(p.pid, &status, 0, nil) })
	p.exited = true
	if p.timer != nil {
		p.timer.Stop()
	}
	return status
}

// signal sends sig to the process and all of its process group.
func (p *proc) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited {
		return errEnded
	}
	if sig == unix.SIGKILL {
		p.killed = true
	}
	return unix.Kill(-p.pid, sig)
}

// killAfter ends the process when d has passed and it is still there.
func (p *proc) killAfter(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.exited {
		p.timer = time.AfterFunc(d, func() { p.signal(unix.SIGKILL) })
	}
}

// endEvent reports how the process ended.
func (p *proc) endEvent(status unix.WaitStatus) *process.ProcessEvent_EndEvent {
	p.mu.Lock()
	killed := p.killed
	p.mu.Unlock()
	e := &process.ProcessEvent_EndEvent{ExitCode: int32(status.ExitStatus()), Exited: status.Exited()}
	if status.Signaled() {
		e.ExitCode = -1
		e.Signal = int32(status.Signal())
	}
	e.Status = statusText(status)
	if e.ExitCode != 0 {
		e.Error = &e.Status
	}
	// The counter is the cgroup's: a kill counts for this process if it died of
	// SIGKILL that we did not send, or is a shell that reports such a child.
	if (e.Signal == int32(unix.SIGKILL) && !killed) || e.ExitCode == 128+int32(unix.SIGKILL) {
		e.OomKilled = p.oomKills() > p.oomBefore
	}
	return e
}
