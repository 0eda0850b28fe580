package fleet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// launch starts a line in a sandbox and leaves it running.
func (d *daemon) launch(id, line string, stdout io.Writer) *guest.Process {
	d.t.Helper()
	client, err := d.Agent(d.t.Context(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	p, err := client.Start(d.t.Context(), guest.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: stdout, Detach: true})
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// TestHostileGuests has guests do what they can against their host and their neighbours: a neighbour goes on, and they themselves answer, sleep and wake.
func TestHostileGuests(t *testing.T) {
	d := newDaemon(t, nil)
	neighbour := d.create(fleet.CreateSpec{})
	// How many processes there may be, how often one more was refused, and how many there are. A shell reads that without any other process.
	const (
		most   = "read n < /sys/fs/cgroup/user/pids.max; echo $n"
		missed = "read name n < /sys/fs/cgroup/user/pids.events; echo $n"
		here   = "read n < /sys/fs/cgroup/user/pids.current; echo $n"
	)
	t.Run("fork bomb", func(t *testing.T) {
		i := d.create(fleet.CreateSpec{})
		if n, err := strconv.Atoi(d.sh(i.ID, most)); err != nil || n < 100 {
			t.Fatalf("it may have %d processes, %v", n, err)
		}
		processes := func() int {
			n, err := strconv.Atoi(d.sh(i.ID, here))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		const few = 10 // what goes on beside a bomb
		for _, when := range []string{"at first", "after its sleep"} {
			before := d.sh(i.ID, missed)
			eventually(t, "it has come up against its limit", func() bool {
				if processes() < few { // a shell that may not fork ends, so that a bomb may die out
					d.launch(i.ID, `b() { b | b & }; b`, nil)
				}
				return d.sh(i.ID, missed) != before
			})
			if got := d.sh(neighbour.ID, "echo fine"); got != "fine" {
				t.Errorf("%s: its neighbour says %q", when, got)
			}
			if got := d.sh(i.ID, "echo here | cat"); got != "here" {
				t.Errorf("%s: it says %q", when, got)
			}
			if _, err := d.Pause(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
				t.Fatal(err)
			}
		}
		// Its owner puts an end to it, and has it as it was.
		d.sh(i.ID, "kill -9 -1")
		eventually(t, "they have ended", func() bool { return processes() < few })
		if got := d.sh(i.ID, "cat /proc/self/cgroup"); got != "0::/user" {
			t.Errorf("another command is in %q", got)
		}
		if err := d.Kill(t.Context(), i.ID); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct{ name, line string }{
		{"full disk", `dd if=/dev/zero of=/full bs=64k 2>/dev/null; dd if=/dev/zero of=/full2 bs=1k 2>/dev/null`},
		{"all memory", `mkdir /m; mount -t tmpfs none /m; dd if=/dev/zero of=/m/x bs=64k 2>/dev/null; tail -c 1000000000 /dev/zero`},
		{"deaf to signals", `trap '' TERM INT HUP QUIT; while :; do :; done`},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := d.create(fleet.CreateSpec{})
			p := d.launch(i.ID, c.line, nil)
			if c.name != "deaf to signals" {
				if _, err := p.Wait(); err != nil {
					t.Fatal(err)
				}
			} else {
				time.Sleep(time.Second) // so that it gets somewhere
			}
			if got := d.sh(neighbour.ID, "echo fine"); got != "fine" {
				t.Errorf("its neighbour says %q", got)
			}
			if got := d.sh(i.ID, "echo here"); got != "here" {
				t.Errorf("it says %q", got)
			}
			if _, err := d.Pause(t.Context(), i.ID); err != nil {
				t.Error(err)
			} else if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
				t.Error(err)
			}
			if c.name == "deaf to signals" {
				p := d.launch(i.ID, c.line, nil)
				if err := p.Signal(t.Context(), syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				if status, err := p.Wait(); err != nil || status.Signal != syscall.SIGKILL {
					t.Errorf("killed, it ended with %v, %v", status, err)
				}
			}
			if err := d.Kill(t.Context(), i.ID); err != nil {
				t.Error(err)
			}
		})
	}
	if err := d.Kill(t.Context(), neighbour.ID); err != nil {
		t.Error(err)
	}
	d.isBare()
}

// TestFlood has a process print without end to somebody who does not read: others in the sandbox are served, and whoever leaves is let go.
func TestFlood(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{})
	stuck, reader := net.Pipe() // nobody reads
	ctx, leave := context.WithCancel(t.Context())
	client, err := d.Agent(ctx, i.ID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := client.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", "yes flood"}, Stdout: stuck})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := d.sh(i.ID, "echo served"); got != "served" {
			t.Errorf("beside the flood it says %q", got)
		}
	}
	leave()
	reader.Close()
	<-p.Done()
	eventually(t, "the flood has ended with whom it was for", func() bool { return !strings.Contains(d.sh(i.ID, "ps"), "yes flood") })
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Error(err)
	}
}

// TestKilledVMM kills the monitors of a running sandbox and of one that waits in a pool.
func TestKilledVMM(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{OnTimeout: fleet.Pause})
	pid, err := d.VMM(i.ID)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sandbox is known to be dead", func() bool { _, err := d.Get(t.Context(), i.ID); return err != nil })
	_, err = d.Agent(t.Context(), i.ID)
	want(t, err, fleet.Gone)
	if page, err := d.List(t.Context(), fleet.Filter{}); err != nil || len(page.Sandboxes) != 0 {
		t.Errorf("listed are %+v, %v", page, err)
	}
	d.isBare()
}

// full expects the error of a disk that is full, as the API tells it.
func full(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("it went well where there is no room")
	}
	if status, _ := answer.Status(err, http.StatusNotFound); status != http.StatusInsufficientStorage {
		t.Errorf("the API would answer %d to %v", status, err)
	}
}

// TestNoRoomForState lets the daemon's database have no room: what can't be written down is not done, and goes well when there is room again.
func TestNoRoomForState(t *testing.T) {
	state := t.TempDir()
	if err := unix.Mount("spore-test", state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=2m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { // after the daemon's end
		if err := unix.Unmount(state, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(state, unix.MNT_DETACH)
		}
	})
	d := newDaemon(t, func(o *fleet.Options) { o.StateDir = state })
	i := d.create(fleet.CreateSpec{})
	d.sh(i.ID, "echo kept > /note")
	ballast, err := os.Create(filepath.Join(state, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	if _, err := io.Copy(ballast, zeroes{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	_, err = d.Pause(t.Context(), i.ID)
	full(t, err)
	if got := d.sh(i.ID, "cat /note"); got != "kept" {
		t.Errorf("after it could not sleep it says %q", got)
	}
	if err := ballast.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Pause(t.Context(), i.ID); err != nil || p.State != fleet.Paused {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.sh(i.ID, "cat /note"); got != "kept" {
		t.Errorf("after its sleep it says %q", got)
	}
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Error(err)
	}
	d.isBare()
}

// zeroes is read without end.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestNoSpace lets the store have no room for a sandbox that is to sleep: it goes on, and sleeps when there is room again.
func TestNoSpace(t *testing.T) {
	d := newDaemon(t, nil)
	i := d.create(fleet.CreateSpec{})
	d.sh(i.ID, "dd if=/dev/urandom of=/big bs=64k count=256 2>/dev/null; echo kept > /note")
	drafts := filepath.Join(lab.Dir, "store", ".drafts")
	if err := os.MkdirAll(drafts, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", drafts, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	_, err := d.Pause(t.Context(), i.ID)
	if failed := unix.Unmount(drafts, unix.MNT_DETACH); failed != nil {
		t.Fatal(failed)
	}
	full(t, err)
	if got := d.sh(i.ID, "cat /note"); got != "kept" {
		t.Errorf("after it could not sleep it says %q", got)
	}
	if _, err := d.Pause(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Connect(t.Context(), i.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.sh(i.ID, "cat /note; wc -c < /big"); got != "kept\n16777216" {
		t.Errorf("after its sleep it says %q", got)
	}
	if err := d.Kill(t.Context(), i.ID); err != nil {
		t.Error(err)
	}
	d.isBare()
}
