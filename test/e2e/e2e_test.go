// Package e2e drives the spore binary as a user does, on real machines.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose/exposetest"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store/bucket/buckettest"
)

// services are object stores.
var services buckettest.Services

func TestMain(m *testing.M) {
	os.Exit(buckettest.Run(m, "../..", func(s buckettest.Services) { services = s }))
}

func TestScripts(t *testing.T) {
	w := newWorld(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: w.setup,
		Condition: func(name string) (bool, error) {
			if name != "fuse" {
				return false, fmt.Errorf("no condition %q", name)
			}
			return exposetest.FUSE() == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":    cmdExit,
			"machine": cmdMachine,
			"signal":  cmdSignal,
			"killvmm": cmdKillVMM,
			"differ":  cmdDiffer,
			"clean":   cmdClean,
			"keep":    cmdKeep,

			"served":    cmdServed,
			"nomachine": cmdNoMachine,

			"freeaddress": cmdFreeAddress,
			"dashboard":   cmdDashboard,
			"lose":        cmdLose,
			"damage":      cmdDamage,
			"servers":     cmdServers,
		},
	})
}

// world is what all scripts share: the binary, an image, and a store with a snapshot of it.
type world struct {
	bin, image, store, cache string

	once sync.Once
	err  error
}

// built builds spore and returns the folder that it is in.
func built(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		t.Fatalf("building spore: %v\n%s", err, out)
	}
	return filepath.Join(root, "bin")
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{bin: built(t), image: filepath.Join(dir, "image"), store: filepath.Join(dir, "store"), cache: filepath.Join(dir, "cache")}
	if err := makeImage(w.image); err != nil {
		t.Fatalf("making an image of busybox (`make deps` installs it): %v", err)
	}
	return w
}

// makeImage makes a folder with a small Linux system: busybox, one user, no more.
func makeImage(dir string) error {
	for _, d := range []string{"bin", "etc", "root", "tmp", "srv", "home/app"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		return err
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\n",
		// Counts in memory, and tells its count by a file.
		"bin/counter": "#!/bin/sh\necho $$ > /tmp/counter\nn=0\nwhile :; do n=$((n+1)); echo $n > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
}

func (w *world) setup(env *testscript.Env) error {
	run, err := os.MkdirTemp("", "spore-e2e-") // short: sockets have short names
	if err != nil {
		return err
	}
	env.Defer(func() {
		left, err := os.ReadDir(run)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("machines were left behind: %v", left)
		}
		if err = errors.Join(err, os.RemoveAll(run)); err != nil {
			env.T().Fatal(err)
		}
	})
	for name, value := range map[string]string{
		"HOME": env.WorkDir, "SPORE_STORE": w.store, "BASE_STORE": w.store, "SNAPSHOT_CACHE_DIR": w.cache, "SANDBOX_DIR": run, "HOST_KERNELS_DIR": guest.KernelsDir(os.Getenv),
		"S3": services.URL("s3", ""), "GS": services.URL("gs", ""),
		"IMAGE": "dir:" + w.image, "PATH": w.bin + string(os.PathListSeparator) + env.Getenv("PATH"),
	} {
		env.Setenv(name, value)
	}
	for _, name := range []string{"STORAGE_EMULATOR_HOST", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} {
		env.Setenv(name, os.Getenv(name))
	}
	proxy := newProxy(services.S3)
	env.Defer(proxy.Close)
	env.Setenv("S3PROXY", services.URL("s3", proxy.URL))
	env.Values[proxyKey{}] = proxy
	w.once.Do(func() {
		cmd := exec.Command(filepath.Join(w.bin, "spore"), "create", "dir:"+w.image, "-t", "base", "--start", "exec counter", "--ready", "test -s /tmp/count")
		cmd.Env = env.Vars
		if out, err := cmd.CombinedOutput(); err != nil {
			w.err = fmt.Errorf("creating the snapshot that all scripts start from: %w\n%s", err, out)
		}
	})
	return w.err
}

// cmdExit runs a command and checks its exit code: exit CODE COMMAND...
func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("running %v: %v", args[1:], err)
	}
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// machines returns the processes that run this script's machines.
func machines(ts *testscript.TestScript) []int {
	records, err := filepath.Glob(filepath.Join(ts.Getenv("SANDBOX_DIR"), "*", "vmm"))
	ts.Check(err)
	var pids []int
	for _, record := range records {
		var pid int
		text, err := os.ReadFile(record)
		if err != nil {
			continue // it ended meanwhile
		}
		if _, err := fmt.Sscan(string(text), &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// patience is how long a busy machine may take for what takes seconds on an idle one.
const patience = 4 * time.Minute

// cmdMachine waits until a machine of this script runs: machine
func cmdMachine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: machine")
	}
	for deadline := time.Now().Add(patience); len(machines(ts)) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("no machine runs after %v", patience)
		}
	}
}

// cmdSignal sends a signal to the one command in the background until it has ended, for it takes notice only once its machine is awake: signal USR1
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	background := ts.BackgroundCmds()
	if neg || len(args) != 1 || len(background) != 1 {
		ts.Fatalf("usage: signal SIGNAL, with one command in the background")
	}
	pid, sig := background[0].Process.Pid, unix.SignalNum("SIG"+args[0])
	for deadline := time.Now().Add(patience); unix.Kill(pid, sig) == nil; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s did nothing in %v", args[0], patience)
		}
	}
}

// cmdKillVMM kills the VMM of this script's one machine.
func cmdKillVMM(ts *testscript.TestScript, neg bool, args []string) {
	pids := machines(ts)
	if neg || len(args) > 0 || len(pids) != 1 {
		ts.Fatalf("killvmm needs one running machine, there are %d", len(pids))
	}
	ts.Check(unix.Kill(pids[0], syscall.SIGKILL))
}

// cmdClean checks that no machine of this script is left: clean
func cmdClean(ts *testscript.TestScript, neg bool, args []string) {
	left, err := os.ReadDir(ts.Getenv("SANDBOX_DIR"))
	ts.Check(err)
	if neg || len(left) > 0 {
		ts.Fatalf("left in the run folder: %v", left)
	}
}

// cmdDiffer checks that no line of one file is in another: differ FILE FILE
func cmdDiffer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: differ FILE FILE")
	}
	lines := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n") {
		lines[line] = true
	}
	for _, line := range strings.Split(strings.TrimSpace(ts.ReadFile(args[1])), "\n") {
		if lines[line] {
			ts.Fatalf("both files have the line %q", line)
		}
	}
}

// cmdKeep keeps the first line of stdout in an environment variable: keep NAME
func cmdKeep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	line, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	ts.Setenv(args[0], line)
}

// proxy stands before the S3 server until that is lost, and damages memory that it passes on when told to.
type proxy struct {
	*httptest.Server
	lost, damage atomic.Bool
}

type proxyKey struct{}

func newProxy(address string) *proxy {
	target, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	p := new(proxy)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error {
			if !p.damage.Load() || !isMemory(r.Request) {
				return nil
			}
			return spoil(r)
		},
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.lost.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	return p
}

// cmdLose has $S3PROXY fail every request from now on: lose
func cmdLose(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: lose")
	}
	ts.Value(proxyKey{}).(*proxy).lost.Store(true)
}

// isMemory tells whether somebody asks for a snapshot's memory.
func isMemory(r *http.Request) bool {
	return r.Method == http.MethodGet && filepath.Base(r.URL.Path) == snapshot.MemoryFile
}

// spoil changes a bit in the middle of what a server has answered.
func spoil(r *http.Response) error {
	body, err := io.ReadAll(r.Body)
	if len(body) > 0 {
		body[len(body)/2] ^= 0x10
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return errors.Join(err, r.Request.Context().Err())
}

// cmdDamage has all memory that comes from $S3PROXY be damaged from now on: damage
func cmdDamage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: damage")
	}
	ts.Value(proxyKey{}).(*proxy).damage.Store(true)
}

// cmdServers kills the processes that serve memory to this script's machines, or waits until there are none: servers kill|gone
func cmdServers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || args[0] != "kill" && args[0] != "gone" {
		ts.Fatalf("usage: servers kill|gone")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		pids := memoryServers(ts)
		if args[0] == "gone" && len(pids) == 0 {
			return
		}
		if args[0] == "kill" && len(pids) > 0 {
			for _, pid := range pids {
				ts.Check(unix.Kill(pid, syscall.SIGKILL))
			}
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("there are %d servers of memory after %v", len(pids), patience)
		}
	}
}

// memoryServers are told from those of other scripts by their environment.
func memoryServers(ts *testscript.TestScript) []int {
	all, err := filepath.Glob("/proc/[0-9]*")
	ts.Check(err)
	var pids []int
	for _, dir := range all {
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // it may be gone, then it is none
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(command, []byte("\x00serve-memory\x00")) && bytes.Contains(environment, []byte("SANDBOX_DIR="+ts.Getenv("SANDBOX_DIR")+"\x00")) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			ts.Check(err)
			pids = append(pids, pid)
		}
	}
	return pids
}
