package sandboxapi_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// site is the API before a real fleet, whose templates come so far only that no machine is ever started: what is wrong with each of them is seen before.
type site struct {
	t    *testing.T
	repo *snapshot.Repo // without conditions, to make templates
	this snapshot.Metadata
	url  string
}

// newSite makes one whose cache is the folder cache.
func newSite(t *testing.T, cache string, options ...snapshot.Option) *site {
	t.Helper()
	dir := t.TempDir()
	open := func(cache string, options ...snapshot.Option) *snapshot.Repo {
		folder, err := store.OpenDir(filepath.Join(dir, "store"))
		if err != nil {
			t.Fatal(err)
		}
		repo, err := snapshot.Open(folder, cache, options...)
		if err != nil {
			t.Fatal(err)
		}
		return repo
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	engine, repo := qemu.New(filepath.Join(dir, "engine")), open(cache, options...)
	host, err := sandbox.NewHost(sandbox.HostOptions{Snapshots: repo, Engine: engine, CacheDir: cache, RunDir: filepath.Join(dir, "run"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	sandboxes, err := fleet.Open(t.Context(), fleet.Options{Host: host, StateDir: filepath.Join(dir, "state"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sandboxes.Close(context.Background(), fleet.Kill); err != nil {
			t.Error(err)
		}
	})
	api, err := sandboxapi.New(sandboxapi.Options{Sandboxes: sandboxes, Snapshots: repo, Check: func(context.Context, string) (string, error) { return "", &fleet.Error{Kind: fleet.NotFound} }})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(api)
	t.Cleanup(func() {
		api.Close()
		web.Close()
	})
	s := &site{t: t, repo: open(filepath.Join(dir, "cache")), url: web.URL}
	d, err := engine.Describe(t.Context(), runtime.GOARCH, vmm.TCG)
	if err != nil {
		t.Fatal(err)
	}
	s.this = snapshot.Metadata{
		Kind: snapshot.KindMachine, Arch: runtime.GOARCH, VCPUs: 1, Net: string(vmm.NetNone), Created: time.Unix(1_700_000_000, 0).UTC(),
		Engine: snapshot.Engine{Name: d.Engine, Version: d.Version, Machine: d.MachineType, Accel: string(d.Accel)}, CPU: snapshot.CPU{Model: d.CPUModel, TSCKHz: d.TSCKHz},
	}
	return s
}

// template makes a template under a name: a machine of this host, but for what change changes, with so many bytes of memory that hold something.
func (s *site) template(name string, memory int64, change func(*snapshot.Metadata)) *snapshot.Snapshot {
	s.t.Helper()
	d, err := s.repo.NewDraft(s.t.Context(), uuid.New(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Abort()
	disk, err := d.Disk(1 << 20)
	if err != nil {
		s.t.Fatal(err)
	}
	mem, err := d.Memory(memory)
	if err != nil {
		s.t.Fatal(err)
	}
	content := make([]byte, memory)
	rand.Read(content)
	for _, err := range []error{disk.Write(0, content[:4096]), mem.Write(0, content), d.State([]byte("none that a machine would take"))} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	m := s.this
	if change != nil {
		change(&m)
	}
	snap, err := d.Commit(s.t.Context(), m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { snap.Close() })
	if err := s.repo.Tag(s.t.Context(), name, snap.ID()); err != nil {
		s.t.Fatal(err)
	}
	return snap
}

// ask returns the status of an answer, and of an error what it says.
func (s *site) ask(method, path, body string) (int, openapi.Error) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var e openapi.Error
	if res.StatusCode >= 400 {
		if err := json.NewDecoder(res.Body).Decode(&e); err != nil || int(e.Code) != res.StatusCode || e.Hint == "" {
			s.t.Errorf("%s %s: %d says %+v, %v", method, path, res.StatusCode, e, err)
		}
	}
	return res.StatusCode, e
}

// refused asks for a sandbox of a template, which it is not to get.
func (s *site) refused(name string, status int, says ...string) {
	s.t.Helper()
	got, e := s.ask("POST", "/v2/sandboxes", `{"templateID":"`+name+`"}`)
	if got != status {
		s.t.Errorf("of %s: %d %+v, want %d", name, got, e, status)
	}
	for _, part := range says {
		if !strings.Contains(e.Message+" "+e.Hint, part) {
			s.t.Errorf("of %s: %+v does not say %q", name, e, part)
		}
	}
	var listed []openapi.ListedSandbox
	res, err := http.Get(s.url + "/v2/sandboxes")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&listed); err != nil || len(listed) > 0 {
		s.t.Errorf("of %s: there is %+v, %v", name, listed, err)
	}
}

// TestIncompatible asks for sandboxes of machines that were frozen on other hosts.
func TestIncompatible(t *testing.T) {
	// All that there is of QEMU is that for guests like this host.
	binary := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
	path, err := exec.LookPath(binary)
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(path, filepath.Join(bin, binary)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)

	s := newSite(t, t.TempDir())
	for name, c := range map[string]struct {
		change func(*snapshot.Metadata)
		says   string
	}{
		"later": {func(m *snapshot.Metadata) { m.Engine.Version = "99.1" }, "engine.version is 99.1"},
		"cpu":   {func(m *snapshot.Metadata) { m.CPU.Model = "486" }, "cpu.model is 486"},
		"vmm":   {func(m *snapshot.Metadata) { m.Engine.Name = "firecracker" }, `no engine "firecracker"`},
		"arch": {func(m *snapshot.Metadata) {
			m.Arch = map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
		}, "is not installed"},
	} {
		s.template(name, 4096, c.change)
		s.refused(name, http.StatusConflict, c.says, "build the template again here")
	}
}

// TestUnsigned asks a daemon that trusts one key for sandboxes of what that has not signed.
func TestUnsigned(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, t.TempDir(), snapshot.Trust([]ed25519.PublicKey{public}))
	snap := s.template("template", 4096, nil)
	s.refused("template", http.StatusConflict, snap.ID().String(), "it is not signed", "have it signed")
	if err := s.repo.Sign(t.Context(), snap, stranger); err != nil {
		t.Fatal(err)
	}
	s.refused("template", http.StatusConflict, "by none of the trusted keys")
	if status, e := s.ask("GET", "/templates/template", ""); status != http.StatusConflict {
		t.Errorf("it is told of: %d %+v", status, e)
	}
	if err := s.repo.Sign(t.Context(), snap, private); err != nil {
		t.Fatal(err)
	}
	if status, e := s.ask("GET", "/templates/template", ""); status != http.StatusOK {
		t.Errorf("it is signed now: %d %+v", status, e)
	}
}

// TestFull asks for a sandbox where the daemon's disk has no room for the template's memory.
func TestFull(t *testing.T) {
	cache := t.TempDir()
	if err := unix.Mount("spore-test", cache, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=2m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { // after all that has files there has been closed
		if err := unix.Unmount(cache, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(cache, unix.MNT_DETACH)
		}
	})
	s := newSite(t, cache)
	s.template("large", 8<<20, nil)
	for range 2 { // the second finds nothing left of the first
		s.refused("large", http.StatusInsufficientStorage, cache, "spore gc")
	}
}
