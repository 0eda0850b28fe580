package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// rounds is how often the daemon is killed.
const rounds = 6

// TestKilledDaemon kills the daemon at any moment of a busy life, again and again: the next one knows what sleeps, and wakes it as it was; what ran is gone, and so
// are its machine, its folder and its place in the list.
func TestKilledDaemon(t *testing.T) {
	d := newDoomed(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	asleep := map[string]string{} // what a paused sandbox's file says
	for round := range rounds {
		d.start()
		d.know(round, asleep)
		busy, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		for worker := range 2 {
			wg.Go(func() { d.live(busy, fmt.Sprint(round, "-", worker), &mu, asleep) })
		}
		time.Sleep(time.Duration(200+draw.IntN(4000)) * time.Millisecond)
		d.kill()
		stop()
		wg.Wait()
		d.machinesEnd()
	}
	d.start()
	d.know(rounds, asleep)
	if err := d.client().KillAll(t.Context()); err != nil {
		t.Error(err)
	}
	d.stop()
	if left, err := os.ReadDir(d.run); err != nil || len(left) > 0 {
		t.Errorf("left in the run folder: %v, %v", left, err)
	}
	list := d.spore("list", "--json")
	if n := strings.Count(list, `"kind": "machine"`); n != 1 || strings.Contains(list, "sandbox/") {
		// What was being published when the daemon was killed may lie around without a name: that is for gc.
		d.spore("gc", "--yes", "--grace", "0s")
		if list = d.spore("list", "--json"); strings.Count(list, `"kind": "machine"`) != 1 {
			t.Errorf("left in the store: %s", list)
		}
	}
}

// doomed is a daemon that is killed.
type doomed struct {
	t   *testing.T
	bin string
	run string
	env []string
	cmd *exec.Cmd
	err bytes.Buffer
}

func newDoomed(t *testing.T) *doomed {
	t.Helper()
	w := newWorld(t)
	run, err := os.MkdirTemp("", "spore-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := &doomed{t: t, bin: filepath.Join(w.bin, "spore"), run: run}
	d.env = append(os.Environ(), "HOME="+dir, "SPORE_STORE="+filepath.Join(dir, "store"), "SNAPSHOT_CACHE_DIR="+filepath.Join(dir, "cache"),
		"SANDBOX_DIR="+run, "HOST_KERNELS_DIR="+guest.KernelsDir(os.Getenv), "SPORE_STATE="+filepath.Join(dir, "state"))
	t.Cleanup(func() {
		if d.cmd != nil {
			d.cmd.Process.Kill()
			d.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the last daemon said:\n%s", d.err.String())
		}
		os.RemoveAll(run)
	})
	d.spore("create", "dir:"+w.image, "-t", "base", "--memory", "160", "--no-prefetch")
	return d
}

// spore runs a command to its end and returns what it prints.
func (d *doomed) spore(args ...string) string {
	d.t.Helper()
	cmd := exec.Command(d.bin, args...)
	cmd.Env = d.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("spore %v: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

func (d *doomed) start() {
	d.t.Helper()
	d.err.Reset()
	d.cmd = exec.Command(d.bin, "serve", "--listen", "127.0.0.1:0", "--pool", "base=1")
	d.cmd.Env = d.env
	d.cmd.Stderr = &d.err
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", d.socket())
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("no daemon listens: %v", err)
		}
	}
}

func (d *doomed) socket() string { return filepath.Join(d.run, "daemon.sock") }

func (d *doomed) client() *client.Client {
	d.t.Helper()
	c, err := client.Dial(d.t.Context(), d.socket())
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *doomed) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
	d.cmd = nil
}

// stop ends the daemon in order.
func (d *doomed) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("the daemon ended with %v", err)
	}
	d.cmd = nil
}

// machinesEnd waits until no machine outlives the daemon.
func (d *doomed) machinesEnd() {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		records, err := filepath.Glob(filepath.Join(d.run, "*", "vmm"))
		if err != nil {
			d.t.Fatal(err)
		}
		alive := 0
		for _, record := range records {
			text, _ := os.ReadFile(record)
			var pid int
			if _, err := fmt.Sscan(string(text), &pid); err == nil && unix.Kill(pid, 0) == nil {
				alive++
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%d machines outlive their daemon", alive)
		}
	}
}

// know checks that the daemon tells the truth: nothing runs but what was just started, and what is known to sleep is there and as it was.
func (d *doomed) know(round int, asleep map[string]string) {
	d.t.Helper()
	c := d.client()
	all, err := c.List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, s := range all {
		listed[s.SandboxID] = true
		if s.State != "paused" {
			d.t.Errorf("round %d: sandbox %s is %s after its daemon was killed", round, s.SandboxID, s.State)
		}
	}
	for id, text := range asleep {
		if !listed[id] {
			d.t.Errorf("round %d: sandbox %s slept and is gone", round, id)
			continue
		}
		if got := d.read(c, id); got != text {
			d.t.Errorf("round %d: sandbox %s says %q, not %q", round, id, got, text)
		}
		if err := c.Kill(d.t.Context(), id); err != nil {
			d.t.Error(err)
		}
		delete(asleep, id)
	}
}

// read wakes a sandbox and reads its file.
func (d *doomed) read(c *client.Client, id string) string {
	d.t.Helper()
	s, err := c.Connect(d.t.Context(), id, time.Hour)
	if err != nil {
		d.t.Errorf("waking %s: %v", id, err)
		return ""
	}
	out, err := output(d.t.Context(), c.Agent(s), "cat /note /dev/shm/note")
	if err != nil {
		d.t.Errorf("asking %s: %v", id, err)
	}
	return out
}

func output(ctx context.Context, agent *guest.Client, line string) (string, error) {
	var out bytes.Buffer
	p, err := agent.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil {
		return "", err
	}
	status, err := p.Wait()
	if err == nil && !status.Success() {
		err = fmt.Errorf("%v: %s", status, &out)
	}
	return strings.TrimSpace(out.String()), err
}

// live makes sandboxes, writes into their disk and memory, and pauses some, until the daemon is gone. What was confirmed to sleep is noted.
func (d *doomed) live(ctx context.Context, name string, mu *sync.Mutex, asleep map[string]string) {
	c := d.client()
	for n := 0; ctx.Err() == nil; n++ {
		s, err := c.Create(ctx, openapi.NewSandbox{TemplateID: "base", Timeout: 3600})
		if err != nil {
			return
		}
		text := fmt.Sprint(name, " ", n)
		if _, err := output(ctx, c.Agent(s), fmt.Sprintf("echo %s > /note; echo %s > /dev/shm/note", text, text)); err != nil {
			return
		}
		if c.Pause(ctx, s.SandboxID) != nil {
			return
		}
		mu.Lock()
		asleep[s.SandboxID] = text + "\n" + text
		mu.Unlock()
	}
}
