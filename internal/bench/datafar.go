package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/farmemory"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store/bucket"
)

// farLatency is how long each request to the object storage takes at least.
const farLatency = 5 * time.Millisecond

// farBench wakes one snapshot from an object storage, with nothing of it on this host.
type farBench struct {
	*dataSuite
	service *objects
	url     string
	cache   string
	host    *sandbox.Host
}

// far measures wakes from an object storage five milliseconds away: with and without the prefetch list, and what comes over for what is touched.
//
// Time is from opening the snapshot to the end of a first command. What is fetched is all bytes of all answers in that time, as they come over, which is
// compressed: metadata, headers, tables, device state, memory and disk. What is touched is the pages of memory that a wake touches in that time and that
// are stored; pages of zeros, and the disk, are left out. fetched_over_touched is the quotient of the two. unpacked_over_touched is the same with frames
// of memory and disk as they are when they are expanded.
func (s *dataSuite) far(ctx context.Context) (err error) {
	if s.Host.LazyMemory == nil {
		return nil
	}
	snap, err := s.Host.Create(ctx, sandbox.CreateSpec{
		Image: s.Image, Arch: s.Arch, CPUs: 1, MemoryBytes: smallMemory, DiskBytes: engineDisk, Accel: s.Accel,
	}, sandbox.NoProgress{})
	if err != nil {
		return err
	}
	id := snap.ID()
	defer func() {
		_, gone := s.Host.Snapshots.Remove(context.WithoutCancel(ctx), id, true)
		err = errors.Join(err, gone)
	}()
	touched, err := s.Host.Touched(ctx, snap)
	memory := touched.Memory()
	stored := storedBytes(snap.Memory().Header(), memory)
	if err = errors.Join(err, snap.Close()); errors.Is(err, errors.ErrUnsupported) {
		return nil // FUSE takes root; the report has no figures of this then
	} else if err != nil {
		return err
	}
	f, stop, err := s.newFar(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := f.host.Snapshots.CopyFrom(ctx, s.Host.Snapshots, id, nil); err != nil {
		return err
	}
	f.service.delay.Store(int64(farLatency))
	var with, without, fetched, unpacked Samples
	for i := range s.Iterations + 1 {
		one, err := f.wake(ctx, id.String(), false)
		if err != nil {
			return err
		}
		other, err := f.wake(ctx, id.String(), true)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // opens the connections of both
		}
		with, without = append(with, ms(one.took)), append(without, ms(other.took))
		fetched, unpacked = append(fetched, float64(one.fetched)), append(unpacked, float64(one.unpacked))
	}
	s.report.Add("far_wake", "ms", with)
	s.report.Add("far_wake_no_prefetch", "ms", without)
	s.report.Add("far_fetched", "bytes", fetched)
	s.report.Add("far_unpacked", "bytes", unpacked)
	s.report.Add("far_touched", "bytes", Samples{float64(memory.Size())})
	s.report.Add("far_touched_stored", "bytes", Samples{float64(stored)})
	s.report.Add("far_touched_disk", "bytes", Samples{float64(touched.Disk().Size())})
	s.report.Ratio("no_prefetch_over_prefetch", without.Median(), with.Median())
	s.report.Ratio("fetched_over_touched", fetched.Median(), float64(stored))
	s.report.Ratio("unpacked_over_touched", unpacked.Median(), float64(stored))
	return nil
}

// storedBytes is how much of some pages is stored, rather than zeros.
func storedBytes(h *block.Header, pages snapshot.Pages) int64 {
	var n int64
	for offset, length := range pages.Bytes() {
		for run := range h.RunsIn(offset, length) {
			if !run.IsHole() {
				n += run.Length
			}
		}
	}
	return n
}

// newFar starts the service, and makes a host whose store is there.
func (s *dataSuite) newFar(ctx context.Context) (_ *farBench, stop func() error, err error) {
	f := &farBench{dataSuite: s, service: newObjects(), cache: filepath.Join(s.scratch, "far")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: f.service}
	go server.Serve(l)
	defer func() {
		if err != nil {
			server.Close()
		}
	}()
	f.url = "s3://far/store?anonymous=true&region=far&use_path_style=true&endpoint=http://" + l.Addr().String()
	if err := os.MkdirAll(f.cache, 0o700); err != nil {
		return nil, nil, err
	}
	st, err := bucket.Open(ctx, f.url, bucket.Options{TempDir: f.cache})
	if err != nil {
		return nil, nil, err
	}
	repo, err := snapshot.Open(st, f.cache, snapshot.Far(framecache.Open(filepath.Join(f.cache, "frames"), 10<<30)))
	if err != nil {
		return nil, nil, err
	}
	o := s.Host.HostOptions
	o.Snapshots, o.CacheDir = repo, f.cache
	servers := &farmemory.Servers{Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "serve-memory", "--store", f.url)
		cmd.Env = append(os.Environ(), "SNAPSHOT_CACHE_DIR="+f.cache)
		return cmd
	}}
	o.LazyMemory = func(ctx context.Context, s *snapshot.Snapshot, o sandbox.LazyOptions) (sandbox.LazyMemory, error) {
		m, err := servers.Open(ctx, s, farmemory.Options{Prefetch: o.Prefetch, Record: o.Record, Failed: o.Failed})
		if err != nil {
			return nil, err
		}
		return m, nil
	}
	if f.host, err = sandbox.NewHost(o); err != nil {
		return nil, nil, err
	}
	return f, func() error { return errors.Join(st.Close(), server.Close()) }, nil
}

// farWake is what one wake took.
type farWake struct {
	took              time.Duration
	fetched, unpacked int64 // bytes
}

// wake wakes a snapshot of which nothing is on this host, and runs a first command.
func (f *farBench) wake(ctx context.Context, ref string, noPrefetch bool) (w farWake, err error) {
	frames := filepath.Join(f.cache, "frames")
	if err := os.RemoveAll(frames); err != nil {
		return w, err
	}
	begin, before := time.Now(), f.service.sent.Load()
	snap, err := f.host.Snapshots.Open(ctx, ref)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	box, err := f.host.Resume(ctx, snap, sandbox.ResumeOptions{NoPrefetch: noPrefetch}, sandbox.NoProgress{})
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if err := run(ctx, box, "exit 0"); err != nil {
		return w, err
	}
	w.took, w.fetched = time.Since(begin), f.service.sent.Load()-before
	// All frames that came were put into the cache as they are when they are expanded.
	err = filepath.WalkDir(frames, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) { // it was being written
			return nil
		} else if err != nil {
			return err
		}
		w.unpacked += info.Size()
		return nil
	})
	if err != nil {
		return w, fmt.Errorf("counting what was fetched: %w", err)
	}
	return w, nil
}
