package farmemory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose/exposetest"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// serverEnv makes the test binary a server, of the store in the folder that it names.
const serverEnv = "SPORE_FARMEMORY_TEST_STORE"

func TestMain(m *testing.M) {
	if root := os.Getenv(serverEnv); root != "" {
		open := func(context.Context) (*snapshot.Repo, error) { return openStore(root) }
		if err := Serve(context.Background(), os.NewFile(SocketFD, "socket"), open, slog.New(slog.DiscardHandler)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func openStore(root string) (*snapshot.Repo, error) {
	if filepath.Base(root) == "none" {
		return nil, errors.New("there is no store")
	}
	st, err := store.OpenDir(root)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(st, filepath.Join(filepath.Dir(root), "cache"))
}

// world is a store with a snapshot, and servers for it.
func world(t *testing.T) (*Servers, *snapshot.Repo, *snapshot.Snapshot, []byte) {
	t.Helper()
	if err := exposetest.FUSE(); err != nil {
		t.Skipf("SKIP: memory can't be served lazily here: %v", err)
	}
	root := filepath.Join(t.TempDir(), "store")
	repo, err := openStore(root)
	if err != nil {
		t.Fatal(err)
	}
	_, _, content := memory(t)
	d, err := repo.NewDraft(t.Context(), uuid.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	disk, err := d.Disk(pageSize)
	if err == nil {
		err = disk.Write(0, content[:pageSize])
	}
	if err == nil {
		err = d.State([]byte("state"))
	}
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.Memory(int64(len(content)))
	if err == nil {
		err = w.Write(0, content)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Commit(t.Context(), snapshot.Metadata{Kind: snapshot.KindMachine, Arch: "amd64", VCPUs: 1, Engine: snapshot.Engine{Name: "none", Version: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return serversFor(root), repo, s, content
}

func serversFor(root string) *Servers {
	return &Servers{Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), serverEnv+"="+root)
		return cmd
	}}
}

// open opens memory for as long as the test runs. Failures go to the channel.
func open(t *testing.T, o *Servers, s *snapshot.Snapshot, options Options) (*Memory, <-chan error) {
	t.Helper()
	failures := make(chan error, 10)
	options.Failed = func(err error) { failures <- err }
	m, err := o.Open(t.Context(), s, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if len(o.running) > 0 {
			return // others have its server, or a later one
		}
		select {
		case <-m.server.gone: // its number may be another process's by now
		default:
			t.Error("the server is left over")
		}
	})
	return m, failures
}

// TestServe reads a whole memory through its file, of which the pages come in the order that is reported.
func TestServe(t *testing.T) {
	o, repo, s, content := world(t)
	m, _ := open(t, o, s, Options{Record: true})
	p := make([]byte, pageSize)
	order := []int64{700, 2, 3, 4, 1000, 77}
	for _, page := range order {
		if n, err := unix.Pread(int(m.File().Fd()), p, page*pageSize); n != pageSize || err != nil || !bytes.Equal(p, content[page*pageSize:(page+1)*pageSize]) {
			t.Fatalf("page %d: %d bytes, %v", page, n, err)
		}
	}
	got, err := m.Pages(t.Context())
	if err != nil || !slices.Equal(slices.Collect(got.All()), order) {
		t.Errorf("touched %v, %v", got, err)
	}
	if err := repo.SetPrefetch(t.Context(), s.ID(), got); err != nil {
		t.Fatal(err)
	}
	for _, prefetch := range []bool{true, false} {
		m, failures := open(t, o, s, Options{Prefetch: prefetch})
		whole := make([]byte, len(content)+100)
		n := 0
		for n < len(content) {
			k, err := unix.Pread(int(m.File().Fd()), whole[n:], int64(n))
			if err != nil || k == 0 {
				t.Fatalf("%d bytes at %d, %v", k, n, err)
			}
			n += k
		}
		if !bytes.Equal(whole[:n], content) {
			t.Error("the memory has other bytes")
		}
		if _, err := unix.Pwrite(int(m.File().Fd()), []byte("x"), 0); err == nil {
			t.Error("it can be written to")
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if len(failures) > 0 {
			t.Errorf("it has failed: %v", <-failures)
		}
	}
}

// TestShared has two users of one memory, of whom one leaves.
func TestShared(t *testing.T) {
	o, _, s, content := world(t)
	one, _ := open(t, o, s, Options{Prefetch: true})
	two, _ := open(t, o, s, Options{})
	three, _ := open(t, o, s, Options{Record: true})
	if one.Server() != two.Server() || one.Server() == three.Server() {
		t.Errorf("the servers are %d, %d and %d", one.Server(), two.Server(), three.Server())
	}
	if err := errors.Join(one.Close(), one.Close()); err != nil {
		t.Error(err)
	}
	p := make([]byte, pageSize)
	if _, err := unix.Pread(int(two.File().Fd()), p, 0); err != nil || !bytes.Equal(p, content[:pageSize]) {
		t.Errorf("after the other has left: %v", err)
	}
}

// TestKilled kills a server: its users hear of it, reads fail, and the next one has a new server.
func TestKilled(t *testing.T) {
	o, _, s, _ := world(t)
	m, failures := open(t, o, s, Options{})
	if err := unix.Kill(m.Server(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failures:
		if !strings.Contains(err.Error(), "killed") {
			t.Errorf("the reason is %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody hears of it")
	}
	if n, err := unix.Pread(int(m.File().Fd()), make([]byte, pageSize), 0); err == nil {
		t.Errorf("read %d bytes of nothing", n)
	}
	if _, err := m.Pages(t.Context()); err == nil {
		t.Error("it was asked")
	}
	again, _ := open(t, o, s, Options{})
	if again.Server() == m.Server() {
		t.Error("the dead server is used again")
	}
}

// TestRefused asks servers that can't serve.
func TestRefused(t *testing.T) {
	_, _, s, _ := world(t)
	for what, o := range map[string]*Servers{
		"there is no store":   serversFor(filepath.Join(t.TempDir(), "none")),
		"has left":            {Command: func() *exec.Cmd { return exec.Command("true") }},
		"exit status 1":       {Command: func() *exec.Cmd { return exec.Command("false") }},
		"no such file":        {Command: func() *exec.Cmd { return exec.Command("/none") }},
		"handed over no file": {Command: func() *exec.Cmd { return exec.Command("sh", "-c", `echo '{"ready":true}' >&3; cat <&3 >/dev/null`) }},
	} {
		m, err := o.Open(t.Context(), s, Options{Failed: func(error) {}})
		if err == nil {
			m.Close()
		}
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), s.ID().String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	slow := &Servers{Command: func() *exec.Cmd { return exec.Command("sleep", "1000") }}
	if _, err := slow.Open(ended, s, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
