package farmemory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/expose"
	"github.com/sporevm/spore/internal/snapshot"
)

// fileName is what the file is called where nobody sees it.
const fileName = "memory"

// notice is how long a fault may take to be noticed before the machine feels it.
const notice = 10 * time.Second

// Serve does what a server is there for, at its end of the socket pair, until the other end is closed. open opens the repository of the snapshot. It is to
// have the process for itself.
func Serve(ctx context.Context, socket *os.File, open func(context.Context) (*snapshot.Repo, error), log *slog.Logger) error {
	c, err := net.FileConn(socket)
	socket.Close()
	if err != nil {
		return fmt.Errorf("serving memory: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return errors.New("serving memory: what was handed over is no socket")
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { conn.Close() })
	s := &server{conn: conn, in: bufio.NewReader(conn), noted: make(chan struct{}, 1), log: log}
	if err := s.start(ctx, open); err != nil {
		refused := message{Refused: err.Error(), Unsupported: errors.Is(err, errors.ErrUnsupported)}
		return errors.Join(err, send(conn, refused))
	}
	return s.answer()
}

type server struct {
	conn  *net.UnixConn
	in    *bufio.Reader
	image *image
	log   *slog.Logger

	sending sync.Mutex
	faulted sync.Mutex // one fault at a time
	noted   chan struct{}
}

// start serves what is asked for, and hands the file over.
func (s *server) start(ctx context.Context, open func(context.Context) (*snapshot.Repo, error)) error {
	r, h, err := s.request()
	if err != nil {
		return fmt.Errorf("reading what memory to serve: %w", err)
	}
	repo, err := open(ctx)
	if err != nil {
		return err
	}
	s.image = newImage(repo.MemoryReader(h), r.Record)
	s.image.failed, s.image.log = s.fault, s.log
	files, err := expose.ServeFUSE([]expose.FUSEFile{{Name: fileName, Base: s.image, Paged: true}}, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	s.image.put = func(offset int64, p []byte) error { return files.Store(fileName, offset, p) }
	fd, _ := files.FD(fileName)
	line, err := json.Marshal(message{Ready: true})
	if err != nil {
		return err
	}
	if _, _, err := s.conn.WriteMsgUnix(append(line, '\n'), unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("handing memory over: %w", err)
	}
	if r.Prefetch {
		go s.prefetch(ctx, repo, h)
	}
	return nil
}

// request reads the request and the header behind it.
func (s *server) request() (r request, h *block.Header, err error) {
	line, err := s.line()
	if err != nil {
		return r, nil, err
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, nil, err
	}
	if err := r.check(); err != nil {
		return r, nil, err
	}
	header := make([]byte, r.Header)
	if _, err := io.ReadFull(s.in, header); err != nil {
		return r, nil, err
	}
	h, err = block.DecodeHeader(bytes.NewReader(header))
	return r, h, err
}

// line reads a line of no unreasonable length.
func (s *server) line() ([]byte, error) { return readLine(s.in) }

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if line = append(line, part...); err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
}

// prefetch is never a reason to fail.
func (s *server) prefetch(ctx context.Context, repo *snapshot.Repo, h *block.Header) {
	pages, err := repo.Prefetch(ctx, h.ID)
	if err != nil {
		s.log.Warn("the list of what to fetch ahead can't be read", "snapshot", h.ID, "error", err)
		return
	}
	s.image.prefetch(ctx, pages)
}

// answer answers questions until there is nobody to ask.
func (s *server) answer() error {
	for {
		line, err := s.line()
		if err != nil {
			return nil // the machine is gone
		}
		var q question
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("serving memory: %w", err)
		}
		switch q.Ask {
		case askPages:
			pages := s.image.pages()
			if err := s.say(message{Pages: &pages}); err != nil {
				return nil
			}
		case sayNoted:
			select {
			case s.noted <- struct{}{}:
			default:
			}
		}
	}
}

func (s *server) say(m message) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return send(s.conn, m)
}

// fault tells what can't be read, and returns when that was noticed: the machine is about to die of it, and its owner must know why.
func (s *server) fault(err error) {
	s.faulted.Lock()
	defer s.faulted.Unlock()
	if s.say(message{Fault: block.Tell(err)}) != nil {
		return
	}
	select {
	case <-s.noted:
	case <-time.After(notice):
	}
}
