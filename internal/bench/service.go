package bench

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/snapshot"
)

// What the service suite asks of a daemon.
const (
	serviceMemory = 256 << 20
	serviceDisk   = 512 << 20
	serviceName   = "bench/service"
	poolSize      = 4
	forkBurst     = 25
	idleSandboxes = 1000
	liveForks     = 100
	leakCycles    = 200
	pssForks      = 8
)

// serviceTimeout is the longest part's on a busy host: a thousand sandboxes are put to sleep.
const serviceTimeout = 40 * time.Minute

// Service measures a daemon through its API, on a connection as an SDK would have it.
func Service(ctx context.Context, e Env) (_ *Report, err error) {
	if e.Arch != "amd64" {
		return nil, fmt.Errorf("the service suite's baselines are written for amd64 guests, not for %s", e.Arch)
	}
	scratch, remove, err := e.Host.WorkDir("bench-")
	if err != nil {
		return nil, err
	}
	defer remove()
	s := &serviceSuite{Env: e, scratch: scratch, report: NewReport("service")}
	defer func() { err = errors.Join(err, s.cleanUp()) }()
	if s.template, err = e.Host.Create(ctx, sandbox.CreateSpec{
		Image: e.Image, Arch: e.Arch, CPUs: 1, MemoryBytes: serviceMemory, DiskBytes: serviceDisk, Accel: e.Accel, Names: []string{serviceName},
	}, e.Progress); err != nil {
		return nil, err
	}
	err = e.measure(ctx, serviceTimeout, []part{
		{"creating against the engine", s.creating},
		{"commands against the engine", s.commands},
		{"pool", s.pool},
		{"25 forks at once", s.burst},
		{"memory of forks", s.memory},
		{"100 live forks", s.live},
		{"200 lives", s.leaks},
		{"1000 idle sandboxes", s.idle},
	})
	return s.report, err
}

type serviceSuite struct {
	Env
	scratch  string
	report   *Report
	template *snapshot.Snapshot
	state    int // counts state folders
}

// cleanUp removes the suite's snapshots.
func (s *serviceSuite) cleanUp() error {
	if s.template == nil {
		return nil
	}
	err := s.template.Close()
	_, failed := s.Host.Snapshots.Remove(context.Background(), s.template.ID(), true)
	return errors.Join(err, failed)
}

// service is a daemon in this process, and a client of it.
type service struct {
	*client.Client
	fleet  *fleet.Fleet
	api    *sandboxapi.Server
	server *http.Server
	done   chan error
}

// daemon starts one with a state of its own.
func (s *serviceSuite) daemon(ctx context.Context, pool int) (*service, error) {
	s.state++
	o := fleet.Options{Host: s.Host, StateDir: filepath.Join(s.scratch, fmt.Sprint("state", s.state)), DefaultTimeout: time.Hour}
	if pool > 0 {
		o.Pools = map[string]fleet.PoolSpec{serviceName: {Size: pool}}
	}
	f, err := fleet.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	api, err := sandboxapi.New(sandboxapi.Options{
		Sandboxes: f, Snapshots: s.Host.Snapshots,
		Check: func(ctx context.Context, secret string) (string, error) {
			key, err := f.Keys().Check(ctx, secret)
			return key.ID, err
		},
	})
	if err != nil {
		return nil, errors.Join(err, f.Close(ctx, fleet.Kill))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, f.Close(ctx, fleet.Kill))
	}
	d := &service{fleet: f, api: api, server: sandboxapi.NewHTTPServer(api, log.New(os.Stderr, "", 0)), done: make(chan error, 1)}
	go func() { d.done <- d.server.Serve(l) }()
	if d.Client, err = client.New("http://"+l.Addr().String(), ""); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// close ends the daemon and all its sandboxes.
func (d *service) close() error {
	err := d.server.Close()
	<-d.done
	d.api.Close()
	d.CloseIdle()
	return errors.Join(err, d.fleet.Close(context.Background(), fleet.Kill))
}

// create makes a sandbox and returns how long that took, until its agent has answered.
func (d *service) create(ctx context.Context) (openapi.Sandbox, time.Duration, error) {
	begin := time.Now()
	box, err := d.Create(ctx, openapi.NewSandbox{TemplateID: serviceName})
	return box, time.Since(begin), err
}

// creating compares a create by the API with a wake by the engine, in turns.
func (s *serviceSuite) creating(ctx context.Context) error {
	d, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer d.close()
	var created, resumed Samples
	for i := range s.Iterations + 1 {
		box, took, err := d.create(ctx)
		if err != nil {
			return err
		}
		if err := d.Kill(ctx, box.SandboxID); err != nil {
			return err
		}
		begin := time.Now()
		direct, err := s.Host.Resume(ctx, s.template, sandbox.ResumeOptions{}, sandbox.NoProgress{})
		if err != nil {
			return err
		}
		engine := time.Since(begin)
		if err := direct.Close(); err != nil {
			return err
		}
		if i > 0 { // the first lays the memory out
			created, resumed = append(created, ms(took)), append(resumed, ms(engine))
		}
	}
	s.report.Add("create", "ms", created)
	s.report.Add("engine_resume", "ms", resumed)
	s.report.Ratio("create_over_engine_resume", created.Median(), resumed.Median())
	return nil
}

// commands compares a command by the API with one by the engine, in turns, in one and the same machine each time.
func (s *serviceSuite) commands(ctx context.Context) error {
	d, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer d.close()
	box, _, err := d.create(ctx)
	if err != nil {
		return err
	}
	direct, err := d.fleet.Agent(ctx, box.SandboxID)
	if err != nil {
		return err
	}
	through := d.Agent(box)
	var api, engine Samples
	for i := range 4*s.Iterations + 5 {
		for _, c := range []struct {
			client  *guest.Client
			samples *Samples
		}{{through, &api}, {direct, &engine}} {
			begin := time.Now()
			if err := runTrue(ctx, c.client); err != nil {
				return err
			}
			if i >= 5 { // the code is translated by then
				*c.samples = append(*c.samples, ms(time.Since(begin)))
			}
		}
	}
	s.report.Add("exec_api", "ms", api)
	s.report.Add("exec_engine", "ms", engine)
	s.report.Ratio("exec_overhead_ms", api.Median()-engine.Median(), 1)
	return nil
}

// pool measures creates that find a sandbox waiting.
func (s *serviceSuite) pool(ctx context.Context) error {
	d, err := s.daemon(ctx, poolSize)
	if err != nil {
		return err
	}
	defer d.close()
	var wakes, execs Samples
	for len(wakes) < 10*s.Iterations {
		if err := d.fleet.WaitPools(ctx); err != nil {
			return err
		}
		for range poolSize {
			box, took, err := d.create(ctx)
			if err != nil {
				return err
			}
			info, err := d.fleet.Get(ctx, box.SandboxID)
			if err != nil {
				return err
			}
			if !info.Pooled {
				break // the pool was not full again
			}
			begin := time.Now()
			if err := runTrue(ctx, d.Agent(box)); err != nil {
				return err
			}
			wakes, execs = append(wakes, ms(took)), append(execs, ms(time.Since(begin)))
			if err := d.Kill(ctx, box.SandboxID); err != nil {
				return err
			}
		}
	}
	s.report.Add("pool_wake", "ms", wakes)
	s.report.Add("pool_first_exec", "ms", execs)
	s.report.Ratio("pool_wake_p50_ms", wakes.Median(), 1)
	s.report.Ratio("pool_wake_p99_ms", wakes.Percentile(99), 1)
	return nil
}

// burst asks for 25 forks of a running sandbox at once. Ideally they take as long as 25 wakes, one after another on each core.
func (s *serviceSuite) burst(ctx context.Context) error {
	d, err := s.daemon(ctx, 0)
	if err != nil {
		return err
	}
	defer d.close()
	parent, _, err := d.create(ctx)
	if err != nil {
		return err
	}
	var walls, resumes, stops Samples
	succeeded := forkBurst
	for range max(3, s.Iterations/3) {
		busy, err := s.busyResumes(ctx, forkBurst)
		if err != nil {
			return err
		}
		begin := time.Now()
		forks, report, err := d.Fork(ctx, parent.SandboxID, forkBurst, 0)
		if err != nil {
			return err
		}
		wall := time.Since(begin)
		good := 0
		for _, k := range forks {
			if k.Sandbox == nil {
				continue
			}
			if runTrue(ctx, d.Agent(*k.Sandbox)) == nil {
				good++
			}
			if err := d.Kill(ctx, k.Sandbox.SandboxID); err != nil {
				return err
			}
		}
		succeeded = min(succeeded, good)
		walls, resumes, stops = append(walls, ms(wall)), append(resumes, busy...), append(stops, report.StoppedMS)
	}
	s.report.Add("fork25_wall", "ms", walls)
	s.report.Add("fork_stopped", "ms", stops)
	s.report.Add("fork25_busy_resume", "ms", resumes)
	s.report.Ratio("fork25_succeeded", float64(succeeded), 1)
	s.report.Ratio("fork25_wall_over_ideal", walls.Median(), resumes.Median()*forkBurst/float64(runtime.NumCPU()))
	return nil
}

// busyResumes measures n wakes, one after another on each core: what one costs when all cores work and no other machine is there.
func (s *serviceSuite) busyResumes(ctx context.Context, n int) (Samples, error) {
	took := make(Samples, n)
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i := range took {
		g.Go(func() error {
			begin := time.Now()
			box, err := s.Host.Resume(ctx, s.template, sandbox.ResumeOptions{}, sandbox.NoProgress{})
			if err != nil {
				return err
			}
			took[i] = ms(time.Since(begin))
			return box.Close()
		})
	}
	return took, g.Wait()
}
