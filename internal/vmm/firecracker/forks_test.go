package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// pagerEnv makes the test binary a pager, whose templates are files of memory.
const pagerEnv = "SPORE_FIRECRACKER_TEST_PAGER"

func pages() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return pager.Serve(ctx, os.Stdin, os.Stdout, openMemory, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// openMemory makes an image of the file at a path.
func openMemory(_ context.Context, path string) (pager.Image, error) {
	plain, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var stored bytes.Buffer
	id := uuid.New()
	w := block.NewWriter(&stored, id, block.WriterOptions{Size: int64(len(plain))})
	defer w.Abort()
	if err := w.Write(0, plain); err != nil {
		return nil, err
	}
	h, _, err := w.Finish(nil)
	if err != nil {
		return nil, err
	}
	return block.NewReader(path, h, oneLayer(stored.Bytes())), nil
}

// oneLayer is a source of the only layer there is.
type oneLayer []byte

func (l oneLayer) Layer(context.Context, uuid.UUID) (io.ReaderAt, error) {
	return bytes.NewReader(l), nil
}

// TestForks thaws several machines of one template whose memory one pager serves: each goes on from where it was frozen, for itself. With the last of them the
// pager goes; with the pager they do.
func TestForks(t *testing.T) {
	needServing(t)
	both(t, func(t *testing.T, e *Engine) {
		state, memory, count := frozen(t, e)
		template := filepath.Join(t.TempDir(), "memory")
		plain, err := io.ReadAll(io.NewSectionReader(memory, 0, 1<<40))
		if err == nil {
			err = os.WriteFile(template, plain, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(pagerEnv, "1") // for the processes that the tracker starts
		failed := make(chan string, 64)
		tracker, err := pager.NewTracker(pager.Config{
			Command: []string{"/proc/self/exe"}, StateDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Failed: func(fork string, err error) { failed <- fork },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := tracker.CloseAll(); err != nil {
				t.Error(err)
			}
		})
		const forks = 25
		var machines []*Machine
		for n := range forks {
			fork := fmt.Sprint("fork-", n)
			c := thawed(t, state, nil)
			if c.Uffd, err = tracker.Acquire(t.Context(), template, pager.Fork{ID: fork, UID: e.Needs().User}); err != nil {
				t.Fatal(err)
			}
			m := start(t, e, c)
			now := vmmtest.WaitCount(t, m, count)
			if now > count+1<<31 {
				t.Fatalf("%s: the counter went from %d to %d", fork, count, now)
			}
			machines = append(machines, m)
		}
		if n := tracker.Forks(template); n != forks {
			t.Errorf("%d forks are counted", n)
		}
		stats, err := tracker.Stats(t.Context(), template)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d machines go on; of their one pager: %+v", forks, stats)

		// One is let go of: its machine is ended by that, and the others go on.
		if err := tracker.Release("fork-0"); err != nil {
			t.Error(err)
		}
		select {
		case <-machines[0].Done():
		case <-time.After(time.Minute):
			t.Error("a machine outlives the serving of its memory")
		}
		for _, m := range machines[1:] {
			vmmtest.WaitCount(t, m, vmmtest.Count(t, m))
		}

		// The pager is killed: no machine reads zeros in the place of its memory, all end.
		fd, err := unix.PidfdOpen(stats.PID, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		for _, m := range machines[1:] {
			select {
			case <-m.Done():
			case <-time.After(time.Minute):
				t.Error("a machine outlives its pager")
			}
		}
		for range forks - 1 {
			select {
			case <-failed:
			case <-time.After(time.Minute):
				t.Fatal("not all are told that their memory is gone")
			}
		}
	})
}
