package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
)

// maxQMPMessage bounds one line of QMP: a compromised VMM must not make us allocate at will.
const maxQMPMessage = 1 << 20

// monitor is a QMP session: commands are answered in order, events arrive in between.
type monitor struct {
	conn   net.Conn
	events chan string // names of events; a reader that lags loses the oldest
	ready  chan struct{}

	mu      sync.Mutex // serialises commands
	answers chan message

	failed chan struct{}
	err    error
}

type message struct {
	Greeting *json.RawMessage `json:"QMP"`
	Event    string           `json:"event"`
	Return   json.RawMessage  `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func newMonitor(conn net.Conn) *monitor {
	m := &monitor{
		conn:    conn,
		events:  make(chan string, 64),
		ready:   make(chan struct{}),
		answers: make(chan message, 1),
		failed:  make(chan struct{}),
	}
	go m.read()
	return m
}

func (m *monitor) read() {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 16<<10), maxQMPMessage)
	greeted := false
	for lines.Scan() {
		var msg message
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			m.fail(fmt.Errorf("control channel: %w", err))
			return
		}
		switch {
		case msg.Greeting != nil && !greeted:
			greeted = true
			close(m.ready)
		case msg.Event != "":
			select {
			case m.events <- msg.Event:
			default: // nobody waits for events now
			}
		case msg.Return != nil || msg.Error != nil:
			select {
			case m.answers <- msg:
			default:
				m.fail(errors.New("control channel: an answer that nobody asked for"))
				return
			}
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	m.fail(fmt.Errorf("control channel: %w", err))
}

func (m *monitor) fail(err error) {
	m.err = err
	close(m.failed)
	m.conn.Close()
}

// open waits for the greeting and leaves the negotiation mode.
func (m *monitor) open(ctx context.Context) error {
	select {
	case <-m.ready:
	case <-m.failed:
		return fmt.Errorf("%w: %w", vmm.ErrDead, m.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return m.execute(ctx, "qmp_capabilities", nil, nil)
}

// execute runs one command and decodes its return value into out unless that is nil.
// A command given up on leaves the session unusable: its late answer could be taken for another's.
func (m *monitor) execute(ctx context.Context, command string, args map[string]any, out any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	line, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("encoding %s: %w", command, err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w: %w", command, vmm.ErrDead, err)
	}
	select {
	case msg := <-m.answers:
		if msg.Error != nil {
			return fmt.Errorf("%s: %s", command, msg.Error.Desc)
		}
		if out != nil {
			if err := json.Unmarshal(msg.Return, out); err != nil {
				return fmt.Errorf("decoding the answer to %s: %w", command, err)
			}
		}
		return nil
	case <-m.failed:
		return fmt.Errorf("%s: %w: %w", command, vmm.ErrDead, m.err)
	case <-ctx.Done():
		m.conn.Close()
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

// waitRunning returns when the virtual CPUs run.
func (m *monitor) waitRunning(ctx context.Context) error {
	for {
		var status struct {
			Running bool   `json:"running"`
			Status  string `json:"status"`
		}
		if err := m.execute(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if status.Running {
			return nil
		}
		select {
		case <-m.events: // any event is a reason to ask again; RESUME is the one that counts
		case <-m.failed:
			return fmt.Errorf("waiting for the machine to run: %w: %w", vmm.ErrDead, m.err)
		case <-ctx.Done():
			return fmt.Errorf("waiting for the machine to run (status %s): %w", status.Status, context.Cause(ctx))
		}
	}
}
