package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
)

// run runs a command to its end and returns what it wrote.
func run(t *testing.T, c *Client, cmd Command) (stdout, stderr string, st ExitStatus) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	p, err := c.Start(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	st, err = p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), st
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestStreamsAndExitCode(t *testing.T) {
	c := session(t)
	out, errs, st := run(t, c, Command{Args: sh("echo hi; cat; echo oops >&2; exit 3"), Stdin: strings.NewReader("fed")})
	if out != "hi\nfed" || errs != "oops\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if st.Code != 3 || st.Signal != 0 || st.OOM || st.Text != "exit status 3" || st.Success() || st.ShellCode() != 3 {
		t.Errorf("%+v", st)
	}
	if _, _, st := run(t, c, Command{Args: sh("true")}); !st.Success() {
		t.Errorf("%+v", st)
	}
}

func TestDeathBySignal(t *testing.T) {
	_, _, st := run(t, session(t), Command{Args: sh("kill -SEGV $$")})
	if st.Code != -1 || st.Signal != syscall.SIGSEGV || st.ShellCode() != 139 || !strings.Contains(st.Text, "segmentation fault") {
		t.Errorf("%+v", st)
	}
}

func TestNoStdinIsEmpty(t *testing.T) {
	if out, _, st := run(t, session(t), Command{Args: []string{"cat"}}); out != "" || !st.Success() {
		t.Errorf("%q, %+v", out, st)
	}
}

func TestSignalReachesTheWholeGroup(t *testing.T) {
	c := session(t)
	p, err := c.Start(t.Context(), Command{Args: sh("sleep 100; echo survived")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	st, err := p.Wait()
	if err != nil || st.Signal != syscall.SIGTERM {
		t.Errorf("%+v, %v", st, err)
	}
	if err := p.Signal(t.Context(), syscall.SIGTERM); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("signalling a dead process: %v", err)
	}
	if err := p.Signal(t.Context(), 99); err == nil {
		t.Error("signal 99 was sent")
	}
}

func TestStartFailures(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	script := filepath.Join(dir, "script")
	write := func(path, text string, mode fs.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(plain, "text", 0o644)
	write(script, "#!/no/such/interpreter\n", 0o755)
	for name, tc := range map[string]struct {
		cmd  Command
		is   error
		says string
	}{
		"no such name":     {Command{Args: []string{"no-such-program"}}, fs.ErrNotExist, "not found in PATH"},
		"no such path":     {Command{Args: []string{"/no/such/program"}}, fs.ErrNotExist, "/no/such/program"},
		"not executable":   {Command{Args: []string{plain}}, fs.ErrPermission, "not executable"},
		"a directory":      {Command{Args: []string{dir}}, fs.ErrPermission, "is a directory"},
		"no interpreter":   {Command{Args: []string{script}}, fs.ErrNotExist, "interpreter"},
		"no directory":     {Command{Args: sh("true"), Dir: "/no/dir"}, nil, "working directory"},
		"no user":          {Command{Args: sh("true"), User: "who-is-this"}, nil, "no such user: who-is-this"},
		"zero in argument": {Command{Args: []string{"sh", "a\x00b"}}, nil, "zero byte"},
		"bad variable":     {Command{Args: sh("true"), Env: map[string]string{"A=B": "x"}}, nil, "malformed"},
		"nothing":          {Command{}, nil, "no command"},
		"empty":            {Command{Args: []string{""}}, nil, "no command"},
		"long tag":         {Command{Args: sh("true"), Tag: strings.Repeat("x", 5000)}, nil, "tag"},
	} {
		_, err := c.Start(t.Context(), tc.cmd)
		if err == nil || !strings.Contains(err.Error(), tc.says) || (tc.is != nil && !errors.Is(err, tc.is)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := c.Processes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("failures left %v, %v", list, err)
	}
}

func TestUserAndEnvironment(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root to become someone else")
	}
	h := newHost(t, agent.Options{Context: api.Context{Env: map[string]string{"FROM": "context", "BOTH": "context"}}})
	c := h.session()
	show := sh("id -u; id -g; echo $HOME; echo $USER; echo $FROM; echo $BOTH; pwd")
	for user, want := range map[string]string{
		"":              "0 0 /root root context request /root",
		"nobody":        "65534 65534 /nonexistent nobody context request /",
		"12345":         "12345 0 / 12345 context request /",
		"nobody:daemon": "65534 1 /nonexistent nobody context request /",
		"77:88":         "77 88 / 77 context request /",
	} {
		out, errs, _ := run(t, c, Command{Args: show, User: user, Env: map[string]string{"BOTH": "request"}})
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("user %q: got %q, want %q (%s)", user, got, want, errs)
		}
	}
	h.server.SetContext(api.Context{User: "nobody", Workdir: "/usr"})
	if out, _, _ := run(t, c, Command{Args: sh("id -u; pwd")}); out != "65534\n/usr\n" {
		t.Errorf("defaults gave %q", out)
	}
}

func TestProgramIsSoughtInThePathOfTheProcess(t *testing.T) {
	c := session(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("#!/bin/sh\necho found in $PWD\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, _, _ := run(t, c, Command{Args: []string{"mine"}, Env: map[string]string{"PATH": dir + ":/bin"}, Dir: "/usr"})
	if out != "found in /usr\n" {
		t.Errorf("by PATH: %q", out)
	}
	if out, _, _ = run(t, c, Command{Args: []string{"./mine"}, Dir: dir}); out != "found in "+dir+"\n" {
		t.Errorf("relative: %q", out)
	}
	if _, err := c.Start(t.Context(), Command{Args: []string{"sh"}, Env: map[string]string{"PATH": dir}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sh was found outside PATH: %v", err)
	}
}

// slow takes its time with every piece, and hashes them all.
type slow struct {
	hash  func([]byte)
	n     int64
	delay time.Duration
}

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(s.delay)
	s.hash(p)
	s.n += int64(len(p))
	return len(p), nil
}

func TestFloodIntoSlowReader(t *testing.T) {
	c := session(t)
	const size = 100 << 20
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	h := sha256.New()
	w := &slow{hash: func(p []byte) { h.Write(p) }, delay: time.Millisecond}
	// A program that the pattern of its output tells from any other order.
	p, err := c.Start(t.Context(), Command{Args: sh(fmt.Sprintf("yes 0123456789abcde | head -c %d", size)), Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	var peak uint64
	for done := false; !done; {
		select {
		case <-p.Done():
			done = true
		case <-time.After(20 * time.Millisecond):
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}
	if st, err := p.Wait(); err != nil || !st.Success() {
		t.Fatal(st, err)
	}
	want := sha256.New()
	line := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	for range size / len(line) {
		want.Write(line)
	}
	if w.n != size || !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d of %d bytes, or others", w.n, size)
	}
	// Both sides share this heap: queues, windows and garbage, but no 100 MB.
	if grown := int64(peak) - int64(before.HeapInuse); grown > 40<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func TestStuckReaderStallsTheProcessOnly(t *testing.T) {
	c := session(t)
	r, w := io.Pipe()
	p, err := c.Start(t.Context(), Command{Args: []string{"cat", "/dev/zero"}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	time.Sleep(200 * time.Millisecond)
	if out, _, st := run(t, c, Command{Args: sh("head -c 1000000 /dev/zero; echo done >&2")}); len(out) != 1000000 || !st.Success() {
		t.Errorf("beside a stuck stream: %d bytes, %+v", len(out), st)
	}
	if err := p.Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	if st, err := p.Wait(); err != nil || st.Signal != syscall.SIGKILL {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestStuckInputsDoNotBlockTheSession(t *testing.T) {
	c := session(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 40 {
		p, err := c.Start(ctx, Command{Args: []string{"sleep", "60"}, OpenStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			in := p.Input(ctx)
			for {
				if _, err := in.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	short, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	p, err := c.Start(short, Command{Args: []string{"cat"}, Stdin: bytes.NewReader(make([]byte, 1<<20))})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || !st.Success() {
		t.Errorf("beside stuck inputs: %+v, %v", st, err)
	}
	cancel()
	wg.Wait()
	waitFor(t, "the processes to be killed", func() bool {
		list, err := c.Processes(t.Context())
		return err == nil && len(list) == 0
	})
}

// waitFor waits for something that happens soon.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestLargeInput(t *testing.T) {
	c := session(t)
	data := bytes.Repeat([]byte("all of it, in order "), 1<<20)
	out, _, st := run(t, c, Command{Args: []string{"sha256sum"}, Stdin: bytes.NewReader(data)})
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); out != want || !st.Success() {
		t.Errorf("%q, want %q", out, want)
	}
}

func TestInputToAProcessThatDoesNotCare(t *testing.T) {
	c := session(t)
	if _, _, st := run(t, c, Command{Args: sh("exit 4"), Stdin: bytes.NewReader(make([]byte, 10<<20))}); st.Code != 4 {
		t.Errorf("%+v", st)
	}
}

func TestWriteAndCloseStdin(t *testing.T) {
	c := session(t)
	var out bytes.Buffer
	p, err := c.Start(t.Context(), Command{Args: []string{"cat"}, OpenStdin: true, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one ", "two"} {
		if err := p.WriteStdin(t.Context(), []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // by the second time it may have ended
		if err := p.CloseStdin(t.Context()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if st, err := p.Wait(); err != nil || !st.Success() || out.String() != "one two" {
		t.Errorf("%q, %+v, %v", out.String(), st, err)
	}
}

func TestStdinThatIsNotThere(t *testing.T) {
	c := session(t)
	p, err := c.Start(t.Context(), Command{Args: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WriteStdin(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "without input") {
		t.Errorf("writing: %v", err)
	}
	if err := p.CloseStdin(t.Context()); err == nil {
		t.Error("closing worked")
	}
	if err := p.Resize(t.Context(), Size{1, 1}); err == nil || !strings.Contains(err.Error(), "no terminal") {
		t.Errorf("resizing: %v", err)
	}
	p.Signal(t.Context(), syscall.SIGKILL)
	p.Wait()
}

func TestManyProcessesAtOnce(t *testing.T) {
	c := session(t)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			var out bytes.Buffer
			p, err := c.Start(t.Context(), Command{Args: sh(fmt.Sprintf("cat; head -c %d /dev/zero; exit %d", i*1000, i)), Stdin: strings.NewReader("x"), Stdout: &out})
			if err != nil {
				t.Error(err)
				return
			}
			if st, err := p.Wait(); err != nil || st.Code != i || out.Len() != i*1000+1 {
				t.Errorf("process %d: %+v, %v, %d bytes", i, st, err, out.Len())
			}
		})
	}
	wg.Wait()
}

func TestNothingIsLostAtExit(t *testing.T) {
	c := session(t)
	for i := range 50 {
		n := 1 + i*4111
		if out, _, _ := run(t, c, Command{Args: []string{"head", "-c", fmt.Sprint(n), "/dev/zero"}}); len(out) != n {
			t.Fatalf("%d of %d bytes", len(out), n)
		}
	}
}

func TestOutputThatCannotBeWritten(t *testing.T) {
	c := session(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	p, err := c.Start(t.Context(), Command{Args: sh("echo x; exit 2"), Stdout: full})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); !errors.Is(err, syscall.ENOSPC) || st.Code != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}
