package bench

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/pager/pagertest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

const (
	pagedBytes = 256 << 20 // the memory that is served
	pagedPage  = 4 << 10
	pagedForks = 25
	pagedShare = 32 << 20 // what each of several forks touches
	pagedVCPUs = 8
)

// Pager measures how fast a machine's memory is served page by page: by our pager, and by a bare loop around the same system calls. The machines are
// processes that do nothing but touch memory. Frames are in the pager's cache, as they are for all forks of a template but the first, unless a name says cold.
func Pager(ctx context.Context, e Env) (_ *Report, err error) {
	scratch, remove, err := e.Host.WorkDir("bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	s := &pagerSuite{Env: e, scratch: scratch, report: NewReport("pager")}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	parts := []part{
		{"first fork", s.cold},
		{"one fault", s.fault},
		{"filling", s.fill},
		{"prefetching", s.prefetch},
		{"two cores", s.scaling},
		{"25 forks", s.resident},
	}
	for i, p := range parts {
		parts[i].run = func(ctx context.Context) error {
			defer context.AfterFunc(ctx, s.stop)()
			err := p.run(ctx)
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
	}
	err = e.measure(ctx, partTimeout, parts)
	return s.report, err
}

type pagerSuite struct {
	Env
	scratch  string
	report   *Report
	tracker  *pager.Tracker
	template string // its pager lives as long as the suite
	forks    int

	bare     *exec.Cmd
	orders   *json.Encoder
	reports  *json.Decoder
	endBare  func() error
	bareFork string // socket
}

// prepare makes a snapshot whose memory nothing compresses, and starts what serves it.
func (s *pagerSuite) prepare(ctx context.Context) error {
	root, flat := filepath.Join(s.scratch, "store"), filepath.Join(s.scratch, "flat")
	st, err := store.OpenDir(root)
	if err != nil {
		return err
	}
	repo, err := snapshot.Open(st, filepath.Join(s.scratch, "cache"))
	if err != nil {
		return err
	}
	id, err := s.memory(ctx, repo, flat)
	if err != nil {
		return err
	}
	s.template = id.String()
	if s.tracker, err = s.newTracker(); err != nil {
		return err
	}
	return s.startBare(flat)
}

func (s *pagerSuite) newTracker() (*pager.Tracker, error) {
	return pager.NewTracker(pager.Config{
		Command: s.Pager(filepath.Join(s.scratch, "store")), StateDir: filepath.Join(s.scratch, "pagers"), CacheBytes: pagedBytes + 16<<20,
	})
}

// memory makes the snapshot, and its memory as a flat file.
func (s *pagerSuite) memory(ctx context.Context, repo *snapshot.Repo, flat string) (uuid.UUID, error) {
	d, err := repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		return uuid.Nil, err
	}
	defer d.Abort()
	f, err := os.Create(flat)
	if err != nil {
		return uuid.Nil, err
	}
	defer f.Close()
	if _, err := d.Disk(1 << 20); err != nil {
		return uuid.Nil, err
	}
	w, err := d.Memory(pagedBytes)
	if err != nil {
		return uuid.Nil, err
	}
	buf := make([]byte, 4<<20)
	for off := int64(0); off < pagedBytes; off += int64(len(buf)) {
		rand.Read(buf)
		if err := w.Write(off, buf); err != nil {
			return uuid.Nil, err
		}
		if _, err := f.Write(buf); err != nil {
			return uuid.Nil, err
		}
	}
	if err := d.State([]byte("a machine that never runs")); err != nil {
		return uuid.Nil, err
	}
	snap, err := d.Commit(ctx, snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64", VCPUs: pagedVCPUs, Engine: snapshot.Engine{Name: "none", Version: "1"}})
	if err != nil {
		return uuid.Nil, err
	}
	return snap.ID(), snap.Close()
}

func (s *pagerSuite) startBare(flat string) error {
	dir, err := os.MkdirTemp("", "bare-")
	if err != nil {
		return err
	}
	s.bareFork = filepath.Join(dir, "socket")
	s.bare = exec.Command(s.Process[0], append(append([]string(nil), s.Process[1:]...), "bare", s.bareFork, flat)...)
	s.bare.Stderr = os.Stderr
	s.bare.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := s.bare.StdinPipe()
	if err != nil {
		return err
	}
	out, err := s.bare.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.bare.Start(); err != nil {
		return err
	}
	s.endBare = func() error {
		in.Close()
		_ = s.bare.Process.Kill()
		_ = s.bare.Wait()
		return os.RemoveAll(dir)
	}
	s.orders, s.reports = json.NewEncoder(in), json.NewDecoder(out)
	return s.reports.Decode(new(bareReport))
}

// stop ends what the suite may be waiting for.
func (s *pagerSuite) stop() {
	_ = s.tracker.CloseAll()
	_ = s.bare.Process.Kill()
}

func (s *pagerSuite) close() error { return errors.Join(s.tracker.CloseAll(), s.endBare()) }

// client starts a machine and maps its memory.
func (s *pagerSuite) client() (*pagertest.Client, error) {
	cmd := exec.Command(s.Process[0], append(append([]string(nil), s.Process[1:]...), "client")...)
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1") // vCPUs get no signals either
	c, err := pagertest.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := c.Map(pagertest.Region{Size: pagedBytes, PageSize: pagedPage}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// fork starts a machine and has our pager serve it. end ends both.
func (s *pagerSuite) fork(ctx context.Context, prefetch ...pager.Range) (c *pagertest.Client, end func() error, err error) {
	s.forks++
	id := strconv.Itoa(s.forks)
	path, err := s.tracker.Acquire(ctx, s.template, pager.Fork{ID: id, UID: os.Geteuid(), Prefetch: prefetch})
	if err != nil {
		return nil, nil, err
	}
	if c, err = s.client(); err == nil {
		if err = c.Hello(pagertest.Hello{Path: path}); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, s.tracker.Release(id))
	}
	return c, func() error {
		c.Close()
		return s.tracker.Release(id)
	}, nil
}

// bareServed is fork with the bare loop. Filled is how long filling took, if that was asked for.
func (s *pagerSuite) bareServed(fill bool) (c *pagertest.Client, filled time.Duration, err error) {
	if err := s.orders.Encode(fill); err != nil {
		return nil, 0, err
	}
	if c, err = s.client(); err != nil {
		return nil, 0, err
	}
	var r bareReport
	if err = c.Hello(pagertest.Hello{Path: s.bareFork}); err == nil {
		err = s.reports.Decode(&r)
	}
	if err != nil {
		c.Close()
	}
	return c, r.Filled, err
}

// pin keeps a process on the first CPUs of those that this one may use; 0 is all of them.
func pin(pid, cpus int) error {
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := 0; cpu < 1024 && (cpus == 0 || some.Count() < cpus); cpu++ {
		if all.IsSet(cpu) {
			some.Set(cpu)
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			if err := unix.SchedSetaffinity(tid, &some); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	return nil
}
