// Package pagertest is a machine's side of a pager without a machine: a process
// that maps memory, hands its userfaultfd over as Firecracker does, and touches
// pages. Tests and measurements drive it.
package pagertest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Region is a stretch of memory that a client maps for a part of the image, in bytes.
type Region struct {
	Size     int64 `json:"size"`
	Offset   int64 `json:"offset"`
	PageSize int64 `json:"page_size"` // 4 KiB, or 2 MiB for huge pages
}

// Hello is what a client sends when it connects. Raw and Descriptors are for clients
// that do it wrong.
type Hello struct {
	Path        string  `json:"path"`
	Raw         *string `json:"raw,omitempty"`         // in the place of its regions; "" sends nothing, and waits
	Descriptors *int    `json:"descriptors,omitempty"` // how many, in the place of one
	Only        int     `json:"only,omitempty"`        // tell so many of its regions
	Late        bool    `json:"late,omitempty"`        // on the connection that was made before
	NoUffd      bool    `json:"no_uffd,omitempty"`     // send another file in its place
}

// Touch is an order in which pages are read. The places are those in the image.
type Touch struct {
	Pages   []int64 `json:"pages,omitempty"` // places; when empty, every Step from From to To
	From    int64   `json:"from,omitempty"`
	To      int64   `json:"to,omitempty"`
	Step    int64   `json:"step,omitempty"`
	Seed    int64   `json:"seed,omitempty"`    // shuffles them, unless 0
	Threads int     `json:"threads,omitempty"` // at least one
	Write   bool    `json:"write,omitempty"`   // write a byte in each page too, after it was read
	Return  bool    `json:"return,omitempty"`  // give each page back after it was read, and read it once more: it has to be zeros
	Expect  string  `json:"expect,omitempty"`  // a file with the image: each page read has to be like it, or zeros where removed
	Times   bool    `json:"times,omitempty"`   // say how long each took
}

// Giving is how memory from the image's start to To is given back, page by page, while
// other threads read around that.
type Giving struct {
	To      int64  `json:"to"`
	Givers  int    `json:"givers"`
	Readers int    `json:"readers"`
	Expect  string `json:"expect"` // a file with the image: pages have to be like it until they are given back, and zeros after that
}

// Touched is what came of a Touch.
type Touched struct {
	Took  time.Duration   `json:"took"`
	Times []time.Duration `json:"times,omitempty"` // of each page, in the order of one thread after another
	Wrong []int64         `json:"wrong,omitempty"` // places with other bytes than expected; at most 100
}

// request and reply are lines of JSON on the client's standard input and output.
type request struct {
	Map    []Region `json:"map,omitempty"`
	Hello  *Hello   `json:"hello,omitempty"`
	Touch  *Touch   `json:"touch,omitempty"`
	Remove *Region  `json:"remove,omitempty"`
	Give   *Giving  `json:"give,omitempty"`
}

type reply struct {
	Error   string   `json:"error,omitempty"`
	Touched *Touched `json:"touched,omitempty"`
}

// Client is a running client process.
type Client struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	replies chan reply
	ended   chan struct{}
}

// Start starts cmd, a program whose body is Main.
func Start(cmd *exec.Cmd) (*Client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a fault client: %w", err)
	}
	c := &Client{cmd: cmd, in: in, out: bufio.NewReader(out), replies: make(chan reply), ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		for d := json.NewDecoder(c.out); ; {
			var r reply
			if d.Decode(&r) != nil {
				_ = c.cmd.Wait()
				return
			}
			c.replies <- r
		}
	}()
	return c, nil
}

// ErrDead says that the client process has ended.
var ErrDead = errors.New("the fault client has ended")

func (c *Client) do(r request) (reply, error) {
	if err := c.send(r); err != nil {
		return reply{}, err
	}
	return c.wait()
}

func (c *Client) send(r request) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := c.in.Write(append(data, '\n')); err != nil {
		return ErrDead
	}
	return nil
}

func (c *Client) wait() (reply, error) {
	select {
	case a := <-c.replies:
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-c.ended:
		return reply{}, ErrDead
	}
}

// Map maps regions and registers them with a new userfaultfd.
func (c *Client) Map(regions ...Region) error {
	_, err := c.do(request{Map: regions})
	return err
}

// Hello connects to a pager.
func (c *Client) Hello(h Hello) error {
	_, err := c.do(request{Hello: &h})
	return err
}

// Touch reads pages.
func (c *Client) Touch(t Touch) (Touched, error) {
	a, err := c.do(request{Touch: &t})
	if err != nil || a.Touched == nil {
		return Touched{}, err
	}
	return *a.Touched, nil
}

// StartTouch begins to read pages. The function returned waits for the end.
func (c *Client) StartTouch(t Touch) (func() (Touched, error), error) {
	if err := c.send(request{Touch: &t}); err != nil {
		return nil, err
	}
	return func() (Touched, error) {
		a, err := c.wait()
		if err != nil || a.Touched == nil {
			return Touched{}, err
		}
		return *a.Touched, nil
	}, nil
}

// Remove gives memory back, as a balloon does.
func (c *Client) Remove(offset, length int64) error {
	_, err := c.do(request{Remove: &Region{Offset: offset, Size: length}})
	return err
}

// Give gives pages back while it reads, and returns those that were wrong.
func (c *Client) Give(g Giving) (wrong []int64, err error) {
	a, err := c.do(request{Give: &g})
	if err != nil || a.Touched == nil {
		return nil, err
	}
	return a.Touched.Wrong, nil
}

// PID is the client's process.
func (c *Client) PID() int { return c.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Killed tells whether the process, which has ended, was killed.
func (c *Client) Killed() bool {
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// Close ends the process.
func (c *Client) Close() {
	_ = c.cmd.Process.Kill()
	for {
		select {
		case <-c.replies:
		case <-c.ended:
			return
		}
	}
}
