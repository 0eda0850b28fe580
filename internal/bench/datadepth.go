package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/snapshot"
)

// A long lineage: machines of 2 GB, of which each generation changes a little all over.
const (
	depthBytes = 2 << 30
	depthFiles = 3000
	depthPages = 256 // of memory, a generation
)

// depth measures inspect and diff, as commands, on a snapshot with a hundred ancestors.
func (s *dataSuite) depth(ctx context.Context) error {
	repo, root, err := s.newStore("depth")
	if err != nil {
		return err
	}
	first, last, err := s.lineage(ctx, repo)
	if err != nil {
		return err
	}
	command := func(args ...string) func() error {
		return func() error {
			cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, "--store", root)...)
			var out, complaint bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &complaint
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("spore %s: %w: %s", args[0], err, complaint.String())
			}
			if out.Len() == 0 {
				return fmt.Errorf("spore %s said nothing", args[0])
			}
			return nil
		}
	}
	took, err := s.alternate(ctx, command("inspect", last.String(), "--text"), command("diff", first.String(), last.String()))
	if err != nil {
		return err
	}
	for i, name := range []string{"inspect_100gen", "diff_100gen"} {
		samples := Milliseconds(took[i]...)
		s.report.Add(name, "ms", samples)
		s.report.Ratio(name+"_ms", samples.Median(), 1)
	}
	return os.RemoveAll(root)
}

// lineage makes a hundred generations and returns the first and the last.
func (s *dataSuite) lineage(ctx context.Context, repo *snapshot.Repo) (first, last uuid.UUID, err error) {
	disk, data, err := s.fileSystem(ctx)
	if err != nil {
		return first, last, err
	}
	defer disk.Close()
	var parent *snapshot.Snapshot
	for n := range generations {
		next, err := s.generation(ctx, repo, parent, disk, data, uint64(n))
		if parent != nil {
			parent.Close()
		}
		if err != nil {
			return first, last, err
		}
		if n == 0 {
			first = next.ID()
		}
		parent = next
	}
	defer parent.Close()
	return first, parent.ID(), nil
}

// fileSystem makes a disk full of small files; data are the blocks that hold what is in them.
func (s *dataSuite) fileSystem(ctx context.Context) (disk *os.File, data []int64, err error) {
	tree, path := filepath.Join(s.scratch, "tree"), filepath.Join(s.scratch, "disk")
	for i := range depthFiles {
		name := filepath.Join(tree, fmt.Sprintf("dir%d", i%100), fmt.Sprintf("file%d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, nil, err
		}
		if err := os.WriteFile(name, bytes.Repeat([]byte(name), 200), 0o644); err != nil {
			return nil, nil, err
		}
	}
	defer os.RemoveAll(tree)
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-d", tree, path, "2G").CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	if disk, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	os.Remove(path)
	fs, err := ext4.NewReader(disk, depthBytes)
	if err == nil {
		err = fs.Walk(ctx, func(n *ext4.Node) error {
			for _, x := range n.Extents {
				if n.IsRegular() {
					data = append(data, x.Disk)
				}
			}
			return nil
		})
	}
	if err != nil {
		disk.Close()
	}
	return disk, data, err
}

// generation makes a snapshot that changes some pages of memory and what is in some files; the first has all of both.
func (s *dataSuite) generation(ctx context.Context, repo *snapshot.Repo, parent *snapshot.Snapshot, disk *os.File, data []int64, n uint64) (*snapshot.Snapshot, error) {
	d, err := repo.NewDraft(ctx, uuid.New(), parent)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	w, err := d.Disk(depthBytes)
	if err != nil {
		return nil, err
	}
	random := mathrand.New(mathrand.NewPCG(n, 1))
	page := make([]byte, 4096)
	if parent == nil {
		buf := make([]byte, 1<<20)
		for off := int64(0); off < depthBytes; off += int64(len(buf)) {
			if _, err := disk.ReadAt(buf, off); err != nil {
				return nil, err
			}
			if err := w.Write(off, buf); err != nil {
				return nil, err
			}
		}
	} else {
		changed := make([]int64, 8)
		for i := range changed {
			changed[i] = data[random.IntN(len(data))]
		}
		slices.Sort(changed)
		for _, off := range slices.Compact(changed) {
			rand.Read(page)
			if err := w.Write(off, page); err != nil {
				return nil, err
			}
		}
	}
	m, err := d.Memory(depthBytes)
	if err != nil {
		return nil, err
	}
	pages := make([]int64, depthPages)
	if parent == nil {
		pages = make([]int64, 64*depthPages)
	}
	for i := range pages {
		pages[i] = random.Int64N(depthBytes/4096) * 4096
	}
	slices.Sort(pages)
	for _, off := range slices.Compact(pages) {
		rand.Read(page)
		if err := m.Write(off, page); err != nil {
			return nil, err
		}
	}
	if err := d.State([]byte("state")); err != nil {
		return nil, err
	}
	return d.Commit(ctx, snapshot.Metadata{
		Kind: snapshot.KindMachine, Arch: "amd64", VCPUs: 1, Engine: snapshot.Engine{Name: "none", Version: "0"}, Created: time.Unix(int64(n), 0),
	})
}
