package pager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/pager/uffd"
)

// faults are what goes wrong with a test image, from a file beside it.
type faults struct {
	OpenError   string
	FailAfter   int64 // frames that can be read before all reads fail; 0: no limit
	FailTimes   int64 // how often each read fails before it succeeds
	SlowMillis  int64
	Hang        bool // reads never return
	Descriptors int  // that the process may open beyond those that are open; 0: no limit
}

// testImage is a layered image in a directory, the pages of which a flat file has too.
type testImage struct {
	dir    string
	header *block.Header
	flat   []byte
}

func (i *testImage) expect() string { return filepath.Join(i.dir, "flat") }

func (i *testImage) setFaults(t *testing.T, f faults) {
	t.Helper()
	data, err := json.Marshal(f)
	if err == nil {
		err = os.WriteFile(filepath.Join(i.dir, "faults"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newImage makes an image of two layers, with runs of pages of either and holes.
func newImage(t *testing.T, size int64, o block.WriterOptions) *testImage {
	t.Helper()
	i := &testImage{dir: t.TempDir(), flat: make([]byte, size)}
	random := rand.New(rand.NewSource(size))
	o.Size = size
	blockSize := max(o.BlockSize, block.DefaultBlockSize)
	layer := func(base *block.Header, share float64) *block.Header {
		id := uuid.New()
		f, err := os.Create(filepath.Join(i.dir, id.String()))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := block.NewWriter(f, id, o)
		defer w.Abort()
		for at := int64(0); at < size; {
			n := min(blockSize*(1+random.Int63n(40)), size-at)
			if random.Float64() < share {
				if base != nil && random.Intn(4) == 0 {
					clear(i.flat[at : at+n])
				} else {
					random.Read(i.flat[at : at+n])
				}
				if err := w.Write(at, i.flat[at:at+n]); err != nil {
					t.Fatal(err)
				}
			}
			at += n
		}
		h, _, err := w.Finish(base)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	i.header = layer(layer(nil, 0.7), 0.3)
	data, err := i.header.MarshalBinary()
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(i.dir, "header"), data, 0o600), os.WriteFile(i.expect(), i.flat, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// frames is how many frames an image's runs lie in.
func (i *testImage) frames() int64 {
	s := &source{h: i.header}
	seen := map[block.Digest]bool{}
	for _, p := range s.pieces(nil, Range{0, i.header.Size}) {
		if !p.isHole() {
			d, _ := s.frame(p)
			seen[d] = true
		}
	}
	return int64(len(seen))
}

// layerFiles is a block.Source.
type layerFiles string

func (d layerFiles) Layer(_ context.Context, id uuid.UUID) (io.ReaderAt, error) {
	return os.Open(filepath.Join(string(d), id.String()))
}

// faulty is an image with faults.
type faulty struct {
	*block.Reader
	faults
	dir   string
	reads atomic.Int64
	tried map[[2]int]*atomic.Int64
}

// openTestImage opens what newImage made; its id is the directory.
func openTestImage(_ context.Context, dir string) (Image, error) {
	var f faults
	data, err := os.ReadFile(filepath.Join(dir, "faults"))
	if err == nil {
		err = json.Unmarshal(data, &f)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && f.OpenError != "" {
		err = errors.New(f.OpenError)
	}
	if err != nil {
		return nil, err
	}
	data, err = os.ReadFile(filepath.Join(dir, "header"))
	if err != nil {
		return nil, err
	}
	h, err := block.DecodeHeader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	i := &faulty{Reader: block.NewReader("memfile of the test", h, layerFiles(dir)), faults: f, dir: dir, tried: map[[2]int]*atomic.Int64{}}
	for l := range h.Layers {
		for n := range h.Layers[l].Frames {
			i.tried[[2]int{l, n}] = new(atomic.Int64)
		}
	}
	if f.Descriptors > 0 {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return nil, err
		}
		limit := uint64(len(open) - 1 + f.Descriptors)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return nil, err
		}
	}
	return i, nil
}

func (i *faulty) ReadFrame(ctx context.Context, layer, frame int, p []byte) error {
	if i.Hang {
		select {} // and does not heed ctx
	}
	time.Sleep(time.Duration(i.SlowMillis) * time.Millisecond)
	if i.tried[[2]int{layer, frame}].Add(1) <= i.FailTimes {
		return errors.New("the line is bad")
	}
	if n := i.reads.Add(1); i.FailAfter > 0 && n > i.FailAfter {
		return errors.New("the disk is on fire")
	}
	return i.Reader.ReadFrame(ctx, layer, frame, p)
}

// lab runs a Tracker and clients.
type lab struct {
	*testing.T
	*Tracker
	temp   string
	failed chan failure
}

type failure struct {
	fork string
	err  error
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	needUffd(t)
	l := &lab{T: t, temp: shortDir(t), failed: make(chan failure, 100)}
	c := Config{
		Command: []string{"/usr/bin/env", roleEnv + "=pager", exe(t)}, StateDir: filepath.Join(t.TempDir(), "state"), TempDir: l.temp,
		Failed: func(fork string, err error) { l.failed <- failure{fork, err} },
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	if l.Tracker, err = NewTracker(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.CloseAll(); err != nil {
			t.Error(err)
		}
		l.nothingLeft()
	})
	return l
}

// nothingLeft fails unless pagers have gone and their directories and notes too.
func (l *lab) nothingLeft() {
	l.Helper()
	for _, dir := range []string{l.temp, l.c.StateDir} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			l.Errorf("%s holds %v (%v)", dir, left, err)
		}
	}
}

// shortDir is a temporary directory with a short name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func needUffd(t *testing.T) {
	t.Helper()
	fd, _, err := uffd.Open(uffd.EventRemove)
	if err != nil {
		t.Skipf("this machine gives no userfaultfd: %v", err)
	}
	fd.Close()
}

func (l *lab) acquire(i *testImage, fork string) string {
	l.Helper()
	path, err := l.Acquire(l.Context(), i.dir, Fork{ID: fork, UID: os.Geteuid()})
	if err != nil {
		l.Fatal(err)
	}
	return path
}

func (l *lab) release(fork string) {
	l.Helper()
	if err := l.Release(fork); err != nil {
		l.Error(err)
	}
}

// client starts a client that has mapped all of an image.
func (l *lab) client(i *testImage) *pagertest.Client {
	l.Helper()
	return l.clientOf(l.command(), pagertest.Region{Size: i.header.Size, PageSize: 4 << 10})
}

func (l *lab) command() *exec.Cmd {
	cmd := exec.Command(exe(l.T))
	cmd.Env = append(os.Environ(), roleEnv+"=client")
	return cmd
}

func (l *lab) clientOf(cmd *exec.Cmd, regions ...pagertest.Region) *pagertest.Client {
	l.Helper()
	c, err := pagertest.Start(cmd)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(c.Close)
	if err := c.Map(regions...); err != nil {
		l.Fatal(err)
	}
	return c
}

// fork starts a client and connects it.
func (l *lab) fork(i *testImage, id string) *pagertest.Client {
	l.Helper()
	path := l.acquire(i, id)
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		l.Fatal(err)
	}
	return c
}

// check has a client touch pages and fails if one is wrong.
func check(t *testing.T, c *pagertest.Client, touch pagertest.Touch) {
	t.Helper()
	got, err := c.Touch(touch)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Wrong) > 0 {
		t.Fatalf("pages with wrong bytes: %v", got.Wrong)
	}
}

func (i *testImage) all(seed int64, threads int) pagertest.Touch {
	return pagertest.Touch{To: i.header.Size, Step: 4 << 10, Seed: seed, Threads: threads, Expect: i.expect()}
}

// dies waits until a client was killed.
func (l *lab) dies(c *pagertest.Client) {
	l.Helper()
	select {
	case <-c.Ended():
		if !c.Killed() {
			l.Error("the client has ended, but was not killed")
		}
	case <-time.After(time.Minute):
		l.Fatal("the client lives on")
	}
}

// fails waits until the Tracker has told that a fork has failed.
func (l *lab) fails(fork, why string) {
	l.Helper()
	select {
	case f := <-l.failed:
		if f.fork != fork || !strings.Contains(f.err.Error(), why) {
			l.Errorf("fork %s has failed: %v; want %s: …%s…", f.fork, f.err, fork, why)
		}
	case <-time.After(time.Minute):
		l.Fatalf("fork %s has not failed", fork)
	}
}

// until waits for something that another process does.
func (l *lab) until(what string, f func() bool) {
	l.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatalf("not after a minute: %s", what)
		}
	}
}

func (l *lab) stats(i *testImage) Stats {
	l.Helper()
	s, err := l.Stats(l.Context(), i.dir)
	if err != nil {
		l.Fatal(err)
	}
	return s
}
