package block

import (
	"errors"
	"io"
	"runtime"
	"sync"
)

// What a pipeline buffers: enough that a machine with a few MiB of news to tell
// is not kept waiting for hash or disk.
const (
	maxInFlight = 16 << 20 // bytes
	maxSlots    = 256      // frames
)

var errAbandoned = errors.New("abandoned")

// pipeline turns a stream into stored frames. The caller fills frames; workers
// digest and compress them, in any order; one goroutine writes them, in order.
type pipeline struct {
	frameSize int
	sealer    *sealer
	w         io.Writer

	filling *slot      // the frame being filled, or nil
	spare   int        // slots that may still be made
	free    chan *slot // slots nobody uses
	work    chan *slot // to the workers
	order   chan *slot // to the writer
	running sync.WaitGroup

	mu  sync.Mutex
	err error // the first one

	// The writer's until close has returned.
	frames []Frame
	stored int64
}

// slot is one frame on its way.
type slot struct {
	raw    []byte        // uncompressed; capacity is the frame size
	packed []byte        // compressed; scratch
	frame  Frame         // all but Offset, once sealed
	stored []byte        // raw or packed, once sealed
	sealed chan struct{} // holds a token once sealed
}

func newPipeline(w io.Writer, codec Codec, frameSize int) (*pipeline, error) {
	s, err := newSealer(codec, frameSize)
	if err != nil {
		return nil, err
	}
	slots := min(max(maxInFlight/frameSize, 4), maxSlots)
	return &pipeline{
		frameSize: frameSize,
		sealer:    s,
		w:         w,
		spare:     slots,
		free:      make(chan *slot, slots),
		work:      make(chan *slot, slots),
		order:     make(chan *slot, slots),
	}, nil
}

// start runs the goroutines; a layer without data needs none.
func (p *pipeline) start() {
	workers := max(2, runtime.GOMAXPROCS(0))
	p.running.Add(workers + 1)
	for range workers {
		go p.seal()
	}
	go p.store()
}

// write adds b to the stream. It copies b and returns before it is stored.
func (p *pipeline) write(b []byte) error {
	for len(b) > 0 {
		if p.filling == nil {
			if err := p.failure(); err != nil {
				return err
			}
			p.filling = p.slot()
		}
		s := p.filling
		n := min(len(b), p.frameSize-len(s.raw))
		s.raw = append(s.raw, b[:n]...)
		b = b[n:]
		if len(s.raw) == p.frameSize {
			p.send()
		}
	}
	return nil
}

// slot returns an empty slot, a new one while there may be more.
func (p *pipeline) slot() *slot {
	select {
	case s := <-p.free:
		return s
	default:
	}
	if p.spare == 0 {
		return <-p.free
	}
	if p.spare == cap(p.free) {
		p.start()
	}
	p.spare--
	return &slot{raw: make([]byte, 0, p.frameSize), sealed: make(chan struct{}, 1)}
}

// send hands the frame being filled on. Both channels hold all slots there are,
// so it does not block.
func (p *pipeline) send() {
	p.order <- p.filling
	p.work <- p.filling
	p.filling = nil
}

// seal is a worker.
func (p *pipeline) seal() {
	defer p.running.Done()
	for s := range p.work {
		if p.failure() == nil {
			p.sealer.seal(s)
		}
		s.sealed <- struct{}{}
	}
}

// store is the writer. After an error it only takes the slots back.
func (p *pipeline) store() {
	defer p.running.Done()
	for s := range p.order {
		<-s.sealed
		if p.failure() == nil {
			p.append(s)
		}
		s.raw = s.raw[:0]
		p.free <- s
	}
}

func (p *pipeline) append(s *slot) {
	n, err := p.w.Write(s.stored)
	if err == nil && n < len(s.stored) {
		err = io.ErrShortWrite
	}
	if err != nil {
		p.fail(err)
		return
	}
	s.frame.Offset = p.stored
	p.frames = append(p.frames, s.frame)
	p.stored += int64(len(s.stored))
}

func (p *pipeline) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *pipeline) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// close stores what is left and ends the goroutines.
func (p *pipeline) close() error {
	if p.filling != nil {
		p.send()
	}
	close(p.work)
	close(p.order)
	p.running.Wait()
	p.sealer.close()
	return p.err
}

// abandon ends the goroutines without storing more than is being stored.
func (p *pipeline) abandon() {
	p.fail(errAbandoned)
	p.filling = nil
	_ = p.close()
}
