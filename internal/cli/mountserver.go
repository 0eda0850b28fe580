package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// server is the process that serves a disk.
type server struct {
	stdin  io.WriteCloser
	stdout *os.File
	ended  chan error
}

// startServer starts this program once more, as the hidden command serve-mount.
func (a *app) startServer(request mountRequest) (*server, error) {
	p, err := a.paths()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "serve-mount", "--store", p.Store)
	cmd.Args[0] = os.Args[0]
	for flag, on := range map[string]bool{"--verbose": a.verbose, "--require-signed": a.requireSigned} {
		if on {
			cmd.Args = append(cmd.Args, flag)
		}
	}
	if a.trustedKeys != "" {
		cmd.Args = append(cmd.Args, "--trusted-keys", a.trustedKeys)
	}
	cmd.Stderr = a.Err
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for us to pass on
	s := &server{ended: make(chan error, 1)}
	var theirs *os.File
	if s.stdout, theirs, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("starting the process that serves the disk: %w", err)
	}
	defer theirs.Close()
	cmd.Stdout = theirs
	if s.stdin, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.stdout.Close()
		return nil, fmt.Errorf("starting the process that serves the disk: %w", err)
	}
	go func() { s.ended <- cmd.Wait() }()
	if err := json.NewEncoder(s.stdin).Encode(request); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the process that serves the disk: %w", err), s.end(context.Background()))
	}
	return s, nil
}

// reply waits until the disk is mounted.
func (s *server) reply() (mountReply, error) {
	var r mountReply
	defer s.stdout.Close()
	if err := json.NewDecoder(s.stdout).Decode(&r); err != nil {
		return r, errors.New("the disk could not be mounted") // it has said why
	}
	return r, nil
}

// unmountPatience is how long the users of a file system have to leave it.
const unmountPatience = 5 * time.Second

// end has the process unmount, and waits for its end.
func (s *server) end(ctx context.Context) error {
	s.stdin.Close()
	select {
	case err := <-s.ended:
		if err != nil {
			return fmt.Errorf("unmounting: %w", err)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
