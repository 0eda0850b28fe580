package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// task is what a child process does, as JSON in its environment.
type task struct {
	Store, Cache, Run string
	Spec              CreateSpec // to create, or
	Resume            uuid.UUID  // a snapshot to wake and to pause as
	Pause             PauseSpec
	DieAt             string // the phase or the operation of the VMM at whose beginning it kills itself; "" and it is killed from outside
}

// childMain is the child process. It says "ready" when it begins with what it is to be killed in.
func childMain(text string) error {
	var c task
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	die := func(at string) {
		if at == c.DieAt {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	engine := &rigged{Engine: qemu.New(c.Cache), before: func(op string, _ vmm.Machine) error { die(op); return nil }}
	h, err := openHost(c.Store, c.Cache, c.Run, engine, slog.DiscardHandler)
	if err != nil {
		return err
	}
	ctx := context.Background()
	progress := phaseFunc(die)
	if c.Resume == uuid.Nil {
		fmt.Println("ready")
		_, err := h.Create(ctx, c.Spec, progress)
		return err
	}
	snap, err := h.Snapshots.OpenID(ctx, c.Resume)
	if err != nil {
		return err
	}
	s, err := h.Resume(ctx, snap, ResumeOptions{}, NoProgress{})
	if err != nil {
		return err
	}
	if _, err := try(ctx, s, "echo child > /child; head -c 3000000 /dev/urandom > /run/child"); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _, err = s.Pause(ctx, c.Pause, progress)
	return err
}

type phaseFunc func(string)

func (f phaseFunc) Phase(name string)    { f(name) }
func (f phaseFunc) Advance(int64, int64) {}

// runToDeath runs a child until it has killed itself, or until it is killed some time after it has begun. It reports whether it came to its end before.
func runToDeath(t *testing.T, c task, after time.Duration) (finished bool) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" && c.DieAt == "" {
			time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return false
	}
	if err != nil || c.DieAt != "" {
		t.Fatalf("the child that was to die at %q ended with %v", c.DieAt, err)
	}
	return true
}

// vmms are the processes that the machines' folders name.
func vmms(t *testing.T, run string) (pids []int) {
	t.Helper()
	for _, dir := range entries(t, run) {
		text, err := os.ReadFile(filepath.Join(run, dir, vmmName))
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func isGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("VMM %d has ended", pid), func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

// afterDeath starts anew where a process has died, and checks that all that it left is gone and that the store has what it had, or the new snapshot as well.
func afterDeath(t *testing.T, c task, before []uuid.UUID, id uuid.UUID) (b bench, published bool) {
	t.Helper()
	pids := vmms(t, c.Run)
	h, err := openHost(c.Store, c.Cache, c.Run, nil, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	b = bench{h, c.Store}
	for _, pid := range pids {
		isGone(t, pid)
	}
	b.isClean(t)
	if left := entries(t, filepath.Join(c.Cache, "images", "tmp")); len(left) > 0 {
		t.Errorf("left in the image cache: %v", left)
	}
	known := map[uuid.UUID]bool{}
	for _, old := range before {
		known[old] = true
	}
	for _, now := range b.ids(t) {
		switch {
		case now == id:
			published = true
		case !known[now] && b.open(t, now).Metadata().HasMemory():
			t.Errorf("snapshot %s has come from nowhere", now)
		}
		delete(known, now)
		if id == now || !slices.Contains(before, now) {
			b.verify(t, now)
		}
	}
	for lost := range known {
		t.Errorf("snapshot %s is lost", lost)
	}
	return b, published
}

// TestKillCreator kills a process at each stage of a creation, all on one store and one cache, and in the end creates what they did not.
func TestKillCreator(t *testing.T) {
	lab.need(t)
	dir, run := t.TempDir(), runFolder(t)
	c := task{Store: filepath.Join(dir, "store"), Cache: filepath.Join(dir, "cache"), Run: run, Spec: small()}
	c.Spec.Steps = []Step{{StepRun, []string{"echo step > /step"}}}
	c.Spec.StartCommand, c.Spec.ReadyCommand = "cd /; exec /probe live", "test -s /count"
	c.Spec.Names = []string{"name"}
	var before []uuid.UUID
	var b bench
	for _, stage := range []string{"pull", "build", "import", "step 1/1", "dial", "stop", "boot", "start", "publish"} { // TestKillPauser has those in between
		c.Spec.ID, c.DieAt = uuid.New(), stage
		runToDeath(t, c, 0)
		var published bool
		if b, published = afterDeath(t, c, before, c.Spec.ID); published {
			t.Errorf("killed at %q it had published the machine", stage)
		}
		before = b.ids(t)
	}
	c.DieAt = ""
	for range 2 {
		c.Spec.ID = uuid.New()
		after := rand.N(4 * time.Second)
		finished := runToDeath(t, c, after)
		var published bool
		if b, published = afterDeath(t, c, before, c.Spec.ID); finished && !published {
			t.Errorf("killed after %v, which was too late, it had published nothing", after)
		}
		before = b.ids(t)
	}
	c.Spec.ID = uuid.New()
	b.create(t, c.Spec)
	s := b.resume(t, c.Spec.ID)
	counts(t, s, 1)
	output(t, s, "grep step /step")
	if names, err := b.Snapshots.Names(t.Context()); err != nil || names["name"] != c.Spec.ID {
		t.Errorf("names: %v, %v", names, err)
	}
}

// TestKillPauser kills a process at each stage of a pause and at random moments.
func TestKillPauser(t *testing.T) {
	b := shared(t, nil)
	run := runFolder(t)
	c := task{Store: b.store, Cache: b.CacheDir, Run: run, Resume: lab.template}
	s := b.resume(t, lab.template)
	output(t, s, "head -c 3000000 /dev/urandom > /run/child")
	begin := time.Now()
	pause(t, s, PauseSpec{})
	usual := time.Since(begin)
	s.Close()
	stages := []string{"pause", "stop", "state", "dirty", "read", "continue", "publish"}
	finished, all := 0, 0
	for i := range len(stages) + 6 {
		c.DieAt, c.Pause = "", PauseSpec{ID: uuid.New(), KeepRunning: i%2 == 1}
		after := usual * time.Duration(i-len(stages)) / 2
		if i < len(stages) {
			c.DieAt, c.Pause.KeepRunning = stages[i], stages[i] == "continue"
		}
		before := b.ids(t)
		end := runToDeath(t, c, after)
		w, published := afterDeath(t, c, before, c.Pause.ID)
		if end && !published || c.DieAt != "" && published {
			t.Errorf("stage %q, %v: it ended: %v; it had published: %v", c.DieAt, after, end, published)
		}
		if published {
			s := w.resume(t, c.Pause.ID)
			output(t, s, "grep child /child; test $(wc -c < /run/child) = 3000000")
			s.Close()
			finished++
		}
		all++
	}
	t.Logf("a pause takes %v; %d of %d had published", usual, finished, all)
	counts(t, b.resume(t, lab.template), 1) // what they all came from is as it was
}

// TestSweep ends what a dead owner's record names, and nothing else.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	owned, orphan, other := start(), start(), start()
	alive, err := newRunDir(root)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := newRunDir(root)
	if err == nil {
		err = errors.Join(alive.record(owned.Process.Pid, Running{}), dead.record(orphan.Process.Pid, Running{}))
	}
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // as the kernel does for a process that is killed
	for name, record := range map[string]string{
		"reused": fmt.Sprintf("%d %d\n", other.Process.Pid, 1), "torn": "12", "garbage": "\xff\xff", "init": "1 0\n", "empty": "",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, vmmName), []byte(record), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "unlocked"), 0o700); err != nil { // killed before it had made anything
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sweep(root, slog.New(testLog(t)), nil); err != nil {
		t.Fatal(err)
	}
	if err := orphan.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the orphan has ended with %v", err)
	}
	for what, cmd := range map[string]*exec.Cmd{"a live owner's process": owned, "a process with a dead one's number": other} {
		if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
			t.Errorf("%s was killed", what)
		}
	}
	if left := entries(t, root); len(left) != 2 || left[0] != filepath.Base(alive.path) && left[1] != filepath.Base(alive.path) {
		t.Errorf("left are %v", left)
	}
	if err := alive.remove(); err != nil {
		t.Error(err)
	}
	if left := entries(t, root); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
	if _, err := newRunDir(filepath.Join(root, strings.Repeat("deep/", 30))); err == nil {
		t.Error("a folder that is not there is used")
	}
	deep := filepath.Join(root, strings.Repeat("d", 100))
	if err := os.Mkdir(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := newRunDir(deep); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("a folder too deep for a socket: %v", err)
	}
	if left := entries(t, deep); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}
