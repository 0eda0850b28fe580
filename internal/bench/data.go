package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// dataBytes is the size of the artifacts that are read and copied.
const dataBytes = 512 << 20

// Data measures snapshots at rest: reading, copying, mounting and comparing them, each against its baseline in the same
// run, and waking one from afar.
func Data(ctx context.Context, e Env) (_ *Report, err error) {
	scratch, remove, err := e.Host.WorkDir("bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	s := &dataSuite{Env: e, scratch: scratch, report: NewReport("data")}
	err = e.measure(ctx, partTimeout, []part{
		{"verified read", s.read},
		{"copy", s.copy},
		{"100 generations", s.depth},
		{"mount", s.mount},
		{"wake from afar", s.far},
	})
	return s.report, err
}

type dataSuite struct {
	Env
	scratch string
	report  *Report
}

// newStore makes an empty store below the scratch folder.
func (s *dataSuite) newStore(name string) (*snapshot.Repo, string, error) {
	root := filepath.Join(s.scratch, name)
	st, err := store.OpenDir(root)
	if err != nil {
		return nil, "", err
	}
	repo, err := snapshot.Open(st, filepath.Join(s.scratch, "cache"))
	return repo, root, err
}

// flat makes a snapshot whose disk is one layer of random bytes, which nothing compresses.
func (s *dataSuite) flat(ctx context.Context, repo *snapshot.Repo) (*snapshot.Snapshot, error) {
	d, err := repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	w, err := d.Disk(dataBytes)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 4<<20)
	for off := int64(0); off < dataBytes; off += int64(len(buf)) {
		rand.Read(buf)
		if err := w.Write(off, buf); err != nil {
			return nil, err
		}
	}
	return d.Commit(ctx, snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64"})
}

// throughput turns durations into MiB/s for n bytes.
func throughput(n int64, took []time.Duration) Samples {
	out := make(Samples, len(took))
	for i, d := range took {
		out[i] = float64(n) / (1 << 20) / d.Seconds()
	}
	return out
}

// alternate takes samples of several things in turn, so that what disturbs the machine disturbs them all.
func (s *dataSuite) alternate(ctx context.Context, runs ...func() error) ([][]time.Duration, error) {
	took := make([][]time.Duration, len(runs))
	for range s.Iterations {
		for i, run := range runs {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			begin := time.Now()
			if err := run(); err != nil {
				return nil, err
			}
			took[i] = append(took[i], time.Since(begin))
		}
	}
	return took, nil
}

// compareSpeed reports two throughputs and their ratio.
func (s *dataSuite) compareSpeed(ratio, name, baseline string, bytes int64, took, base []time.Duration) {
	mine, theirs := throughput(bytes, took), throughput(bytes, base)
	s.report.Add(name, "MiB/s", mine)
	s.report.Add(baseline, "MiB/s", theirs)
	s.report.Ratio(ratio, mine.Median(), theirs.Median())
}

// nowhere takes bytes and forgets them.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// read compares reading a flat artifact, every byte verified, with cat, both from the page cache.
func (s *dataSuite) read(ctx context.Context) error {
	repo, root, err := s.newStore("read")
	if err != nil {
		return err
	}
	snap, err := s.flat(ctx, repo)
	if err != nil {
		return err
	}
	defer snap.Close()
	file := filepath.Join(root, snap.ID().String(), snapshot.DiskFile)
	cat := func() error {
		return exec.CommandContext(ctx, "cat", file).Run() // its output goes to /dev/null
	}
	if err := cat(); err != nil { // into the page cache
		return err
	}
	took, err := s.alternate(ctx, func() error { return snap.Disk().CopyTo(ctx, nowhere{}, nil) }, cat, hashOnly)
	if err != nil {
		return err
	}
	s.compareSpeed("verified_read_over_cat", "verified_read", "cat", dataBytes, took[0], took[1])
	floor := throughput(dataBytes, took[2])
	s.report.Add("hash", "MiB/s", floor)
	s.report.Ratio("verified_read_over_hash", throughput(dataBytes, took[0]).Median(), floor.Median())
	return os.RemoveAll(root)
}

// hashOnly digests as many bytes on all CPUs, from memory that is in their caches: no verified read is faster.
func hashOnly() error {
	var g errgroup.Group
	workers := runtime.GOMAXPROCS(0)
	for range workers {
		g.Go(func() error {
			frame := make([]byte, block.DefaultFrameSize)
			for range dataBytes / block.DefaultFrameSize / workers {
				block.Sum(frame)
			}
			return nil
		})
	}
	return g.Wait()
}

// copy compares a verified copy to another folder with cp of the same files, both down to the disk.
func (s *dataSuite) copy(ctx context.Context) error {
	repo, root, err := s.newStore("copy")
	if err != nil {
		return err
	}
	snap, err := s.flat(ctx, repo)
	if err != nil {
		return err
	}
	defer snap.Close()
	source, n := filepath.Join(root, snap.ID().String()), 0
	fresh := func() string {
		n++
		return fmt.Sprintf("copy-%d", n)
	}
	verified := func() error {
		to, _, err := s.newStore(fresh())
		if err == nil {
			_, err = to.CopyFrom(ctx, repo, snap.ID(), nil)
		}
		return err
	}
	cp := func() error {
		to := filepath.Join(s.scratch, fresh())
		if err := exec.CommandContext(ctx, "cp", "-r", source, to).Run(); err != nil {
			return fmt.Errorf("cp: %w", err)
		}
		return exec.CommandContext(ctx, "sync", filepath.Join(to, snapshot.DiskFile)).Run() // as durable as ours
	}
	var took [2][]time.Duration
	for range s.Iterations { // one at a time: their files go at once
		one, err := (&dataSuite{Env: Env{Iterations: 1}}).alternate(ctx, verified, cp)
		if err != nil {
			return err
		}
		took[0], took[1] = append(took[0], one[0]...), append(took[1], one[1]...)
		old, err := filepath.Glob(filepath.Join(s.scratch, "copy-*"))
		for _, path := range old {
			err = errors.Join(err, os.RemoveAll(path))
		}
		if err != nil {
			return err
		}
	}
	s.compareSpeed("copy_over_cp", "copy", "cp", dataBytes, took[0], took[1])
	return os.RemoveAll(root)
}
