package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/process"
)

// start runs a shell script as the process service does.
func start(t *testing.T, s *Server, script string) *proc {
	t.Helper()
	cfg := &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", script}}
	cmd, err := newCommand(cfg, account{Name: "root", Home: "/", Shell: "/bin/sh"}, s.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	io, err := openPipes(false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.run(t.Context(), cmd, cfg, "", io, s.table.add, s.table.retire)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestReaperAndServiceKeepApart makes this process adopt orphans, as process 1
// does, and runs many processes that leave some.
func TestReaperAndServiceKeepApart(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	s := New(Options{})
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	reaping := make(chan struct{})
	go func() {
		defer close(reaping)
		s.options.Children.ReapOrphans(ctx)
	}()
	defer func() { cancel(); <-reaping }()

	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			// Half of them end at once, the others leave an orphan or two.
			script := fmt.Sprintf("exit %d", i)
			if i%2 == 1 {
				script = fmt.Sprintf("(sleep 0.0%d; exit 1) & (exit 2) & exit %d", i%10, i)
			}
			p := start(t, s, script)
			<-p.ended
			if p.end.GetExitCode() != int32(i) {
				t.Errorf("process %d: %v", i, p.end)
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		left := children(t)
		if left == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not reaped: %s", left)
		}
	}
	// Each was struck off before its end was told.
	if len(s.options.Children.own) != 0 || s.table.count() != 0 {
		t.Errorf("%d registered, %d in the table", len(s.options.Children.own), s.table.count())
	}
}

// children lists the processes whose parent is this one.
func children(t *testing.T) string {
	t.Helper()
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	if len(lists) == 0 {
		t.Skip("SKIP: this kernel does not list children")
	}
	var all strings.Builder
	for _, l := range lists {
		data, _ := os.ReadFile(l)
		all.Write(data)
	}
	return strings.TrimSpace(all.String())
}

// TestOutputIsFoundPastADeadline looks into a pipe whose deadline has passed before anybody did: what is there is found, and nothing is waited for.
func TestOutputIsFoundPastADeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	conn, err := r.SyscallConn()
	if err == nil {
		_, err = w.WriteString("last words")
	}
	if err == nil {
		err = r.SetReadDeadline(time.Unix(1, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := readChunk(conn.Read); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	c, n, err := readChunk(once(conn))
	if err != nil || string(c.buf[:n]) != "last words" {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, n, err := readChunk(once(conn)); n != 0 || err != unix.EAGAIN {
		t.Errorf("an empty pipe: %d bytes, %v", n, err)
	}
	w.Close()
	if _, n, err := readChunk(once(conn)); n != 0 || err != io.EOF {
		t.Errorf("a pipe that is closed: %d bytes, %v", n, err)
	}
}

func TestEndedProcessesAreForgottenInTime(t *testing.T) {
	tab := newTable()
	for i := 1; i <= 3*keptEnds; i++ {
		p := &proc{pid: i, tag: "all"}
		tab.add(p)
		tab.retire(p)
	}
	byPid := func(pid int) func(*proc) bool { return func(p *proc) bool { return p.pid == pid } }
	if len(tab.ended) != keptEnds || tab.find(byPid(1), true) != nil || tab.find(byPid(3*keptEnds), true) == nil {
		t.Errorf("%d are kept", len(tab.ended))
	}
	if p := tab.find(func(p *proc) bool { return p.tag == "all" }, true); p == nil || p.pid != 3*keptEnds {
		t.Error("the last of a tag is not the one found")
	}
	// A pid that came back belongs to the living.
	old, now := &proc{pid: 7}, &proc{pid: 7}
	tab.add(old)
	tab.add(now)
	tab.retire(old)
	if tab.find(byPid(7), false) != now {
		t.Error("the living process was retired with its namesake")
	}
}

func TestBornInItsCgroup(t *testing.T) {
	var root string
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" {
		t.Skip("SKIP: no version 2 control groups here")
	}
	dir, err := os.MkdirTemp(root, "spore-test-")
	if err != nil {
		t.Skip("SKIP: cannot make a control group:", err)
	}
	defer os.Remove(dir)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := New(Options{Group: func() int { return int(f.Fd()) }})
	defer s.Close()
	mark := filepath.Join(t.TempDir(), "groups")
	p := start(t, s, "cat /proc/self/cgroup >"+mark)
	<-p.ended
	got, err := os.ReadFile(mark)
	if err != nil || !strings.Contains(string(got), "0::/"+filepath.Base(dir)+"\n") {
		t.Errorf("%q, %v (%v)", got, err, p.end)
	}
}

func TestNoProcessIsMadeInAGuestThatStandsStill(t *testing.T) {
	fail := errors.New("not now")
	s := New(Options{
		Quiesce: func(_ context.Context, o api.QuiesceOptions) (api.QuiesceReport, error) {
			if o.Compact {
				return api.QuiesceReport{}, fail
			}
			return api.QuiesceReport{}, nil
		},
		Wake: func(context.Context, api.Identity) (api.WakeReport, error) { return api.WakeReport{}, nil },
	})
	defer s.Close()
	ctx := t.Context()
	if _, err := s.quiesce(ctx, api.QuiesceOptions{Compact: true}); err != fail {
		t.Fatal(err)
	}
	<-start(t, s, "true").ended // the failure left it running

	for range 2 {
		if _, err := s.quiesce(ctx, api.QuiesceOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	made := func() (int, error) { t.Error("a process was made"); return 0, nil }
	if _, err := s.options.Children.start(short, made); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	started := make(chan *proc)
	go func() { started <- start(t, s, "exit 3") }()
	if _, err := s.wake(ctx, api.Identity{Hold: true}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-started:
		t.Error("a process was made before the guest ran")
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := s.wake(ctx, api.Identity{}); err != nil {
		t.Fatal(err)
	}
	p := <-started
	<-p.ended
	if p.end.GetExitCode() != 3 {
		t.Errorf("%v", p.end)
	}
}
