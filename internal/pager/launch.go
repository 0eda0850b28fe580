package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// start starts the process. Its first fork may give up meanwhile: others wait too.
func (p *pager) start() {
	p.err = p.launch()
	if p.err != nil {
		p.tracker.forget(p)
	}
	close(p.ready)
}

func (p *pager) launch() (err error) {
	if p.root, err = socketDir(p.tracker.c.TempDir); err != nil {
		return err
	}
	p.note() // before there is anything to clean up
	defer func() {
		if err != nil {
			if p.child != nil {
				p.child.close()
			}
			os.RemoveAll(p.root)
			p.unnote()
		}
	}()
	command := p.tracker.c.Command
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	p.wire = newWire(ours)
	cmd.ExtraFiles = []*os.File{theirs} // becomes trackerFD
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd} // a Ctrl-C is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a pager: %w", err)
	}
	p.child = &process{pid: cmd.Process.Pid, fd: fd}
	if fd < 0 {
		return errors.Join(errors.New("starting a pager: this kernel gives no pidfd (Linux 5.4 has it)"), cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	p.began = p.child.started()
	died := make(chan error, 1)
	if err = p.greet(in, out); err != nil {
		return errors.Join(err, p.child.kill(), ignoreExit(cmd.Wait()))
	}
	p.note()
	go func() { died <- cmd.Wait() }()
	go p.listen(func() error { return <-died })
	return nil
}

// ignoreExit leaves out that a process did not end well: that is known.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// greet tells the process what to do, and connects to it when it is ready.
func (p *pager) greet(in io.WriteCloser, out io.ReadCloser) error {
	deadline := time.AfterFunc(startPatience, func() { _ = p.child.kill() })
	defer deadline.Stop()
	c := p.tracker.c
	err := json.NewEncoder(in).Encode(order{Root: p.root, Template: p.template, CacheBytes: c.CacheBytes, PageMillis: c.PageTimeout.Milliseconds(),
		OrphanMillis: c.OrphanGrace.Milliseconds()})
	in.Close()
	if err != nil {
		return fmt.Errorf("starting a pager: telling it what to serve: %w", err)
	}
	var answer started
	if err := json.NewDecoder(io.LimitReader(out, maxPacket)).Decode(&answer); err != nil {
		return fmt.Errorf("starting a pager: it has ended, or not answered in %v: %w", startPatience, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("starting a pager: %w", answer.Error)
	}
	return nil
}

// socketPair makes a control connection, one end of it for a child.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a control connection: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "pager")
	ours, err := connection(os.NewFile(uintptr(fds[0]), "tracker"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// dirPrefix is how the names of directories with sockets begin.
const dirPrefix = "spore-pager-"

// socketDir makes a directory whose sockets have short paths.
func socketDir(temp string) (string, error) {
	const longest = len("/" + dirPrefix + "0123456789/0123456789")
	if len(temp)+longest > maxSocketPath {
		temp = "/tmp"
	}
	dir, err := os.MkdirTemp(temp, dirPrefix)
	if err != nil {
		return "", fmt.Errorf("making a directory for sockets: %w", err)
	}
	return dir, nil
}
