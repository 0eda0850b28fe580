package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
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
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
	"github.com/sporevm/spore/internal/vmm/pagemap"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// onFirecrackers runs a test on the Firecracker for tests and, where there is one, on a real one.
func onFirecrackers(t *testing.T, test func(t *testing.T, binary string)) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the counting guest is for x86, and Firecracker runs guests of the host's architecture")
	}
	if os.Geteuid() != 0 {
		t.Skip("showing a disk as a file takes root")
	}
	t.Run("test", func(t *testing.T) {
		test(t, fctest.InstallStatic(t, "1.16.1"))
	})
	t.Run("real", func(t *testing.T) {
		binary := os.Getenv("SPORE_FIRECRACKER")
		if binary == "" {
			t.Skip("no Firecracker here: SPORE_FIRECRACKER names none")
		}
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			t.Skipf("Firecracker is here, but takes KVM: %v", err)
		}
		kvm.Close()
		test(t, binary)
	})
}

// counter is a guest of a few hundred bytes that counts in memory. It has no agent, so spore waits for one while the guest runs; all before that is as with any guest.
type counter struct {
	t      *testing.T
	id     uuid.UUID
	bytes  int64  // of memory
	frozen uint32 // where it stood when it was frozen
	env    []string
	cache  string
	run    string
	bin    string
}

const counterAt = 4 << 20 // where it counts

// freezeCounter boots the guest on a Firecracker, freezes it, and puts it into a store.
func freezeCounter(t *testing.T, binary string, st store.Store) *counter {
	t.Helper()
	ctx, engine := t.Context(), firecracker.New(firecracker.Programs{Binary: binary}, nil)
	c := vmmtest.Config(t, vmmtest.Long())
	c.Accel = vmm.KVM
	var err error
	disk := filepath.Join(t.TempDir(), "disk")
	if err = os.WriteFile(disk, make([]byte, 1<<20), 0o666); err == nil {
		c.Disk, err = os.OpenFile(disk, os.O_RDWR, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := engine.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	vmmtest.WaitCount(t, m, 1<<14)
	state, memory, _ := vmmtest.Freeze(t, m, c.Memory)
	k := &counter{t: t, bytes: c.MemoryBytes, frozen: vmmtest.Count(t, m), bin: filepath.Join(built(t), "spore")}
	description, err := engine.Describe(ctx, "amd64", vmm.KVM)
	if err != nil {
		t.Fatal(err)
	}
	k.publish(st, description, state, memory)

	if k.run, err = os.MkdirTemp("", "spore-e2e-"); err != nil { // short: sockets have short names
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(k.run); err != nil || len(left) > 0 {
			t.Errorf("left in the run folder: %v (%v)", left, err)
		}
		os.RemoveAll(k.run)
	})
	k.cache = filepath.Join(t.TempDir(), "cache")
	k.env = append(os.Environ(), "HOME="+t.TempDir(), "SNAPSHOT_CACHE_DIR="+k.cache, "SANDBOX_DIR="+k.run, "SPORE_FIRECRACKER="+binary)
	return k
}

func (k *counter) publish(st store.Store, d vmm.Description, state []byte, memory io.Reader) {
	k.t.Helper()
	ctx := k.t.Context()
	repo, err := snapshot.Open(st, k.t.TempDir())
	if err != nil {
		k.t.Fatal(err)
	}
	draft, err := repo.NewDraft(ctx, uuid.New(), nil)
	if err != nil {
		k.t.Fatal(err)
	}
	defer draft.Abort()
	if _, err := draft.Disk(1 << 20); err != nil {
		k.t.Fatal(err)
	}
	content := make([]byte, k.bytes)
	w, err := draft.Memory(k.bytes)
	if err == nil {
		_, err = io.ReadFull(memory, content)
	}
	if err == nil {
		err = w.Write(0, content)
	}
	if err = errors.Join(err, draft.State(state)); err != nil {
		k.t.Fatal(err)
	}
	snap, err := draft.Commit(ctx, snapshot.Metadata{
		Kind: snapshot.KindMachine, Arch: "amd64", VCPUs: 1, Net: "none",
		Engine: snapshot.Engine{Name: d.Engine, Version: d.Version, Machine: d.MachineType, Accel: string(d.Accel)},
		CPU:    snapshot.CPU{Model: d.CPUModel, Flags: d.CPUFlags, TSCKHz: d.TSCKHz},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.id = snap.ID()
	if err := snap.Close(); err != nil {
		k.t.Fatal(err)
	}
}

// resumed is a `spore resume` under way.
type resumed struct {
	*exec.Cmd
	said bytes.Buffer
	done chan struct{}
}

// resume wakes the guest by the command line.
func (k *counter) resume(args ...string) *resumed {
	k.t.Helper()
	return k.start(append(append([]string{"resume"}, args...), k.id.String())...)
}

// start starts a command.
func (k *counter) start(args ...string) *resumed {
	k.t.Helper()
	r := &resumed{Cmd: exec.Command(k.bin, args...), done: make(chan struct{})}
	r.Env, r.Stdout, r.Stderr = k.env, &r.said, &r.said
	if err := r.Start(); err != nil {
		k.t.Fatal(err)
	}
	go func() { r.Wait(); close(r.done) }()
	k.t.Cleanup(func() { r.Process.Kill(); <-r.done })
	return r
}

// end waits until the command has ended, and returns what it has said.
func (r *resumed) end(t *testing.T) string {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("spore resume does not end")
	}
	return r.said.String()
}

// vmm waits for the VMM of a resume.
func (k *counter) vmm(r *resumed) int {
	k.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		records, err := filepath.Glob(filepath.Join(k.run, "*", "vmm"))
		if err != nil {
			k.t.Fatal(err)
		}
		for _, record := range records {
			var pid int
			if text, err := os.ReadFile(record); err == nil {
				if _, err := fmt.Sscan(string(text), &pid); err == nil {
					return pid
				}
			}
		}
		select {
		case <-r.done:
			k.t.Fatalf("spore resume has ended: %s", r.said.String())
		default:
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("no machine runs after %v", patience)
		}
	}
}

// counts waits until the guest has counted on from where it was frozen.
func (k *counter) counts(m *pagemap.Memory) {
	k.t.Helper()
	var p [4]byte
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if err := m.Read(p[:], counterAt); err != nil {
			k.t.Fatal(err)
		}
		now := binary.LittleEndian.Uint32(p[:])
		if now < k.frozen || now > k.frozen+1<<31 {
			k.t.Fatalf("the counter went from %d to %d", k.frozen, now)
		}
		if now > k.frozen {
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("the counter stands at %d", now)
		}
	}
}

// gone waits for the end of a process, which need not be a child.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is left", pid)
		}
	}
}

// bucketProxy stands before the S3 server, counts who asks for memory, and damages it when told to.
type bucketProxy struct {
	*httptest.Server
	asked  atomic.Int64
	damage atomic.Bool
}

func newBucketProxy(t *testing.T) *bucketProxy {
	t.Helper()
	target, err := url.Parse(services.S3)
	if err != nil {
		t.Fatal(err)
	}
	p := new(bucketProxy)
	p.Server = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error {
			if !isMemory(r.Request) {
				return nil
			}
			p.asked.Add(1)
			if !p.damage.Load() {
				return nil
			}
			return spoil(r)
		},
	})
	t.Cleanup(p.Close)
	return p
}

// TestFirecrackerFromBucket wakes a guest on Firecracker whose snapshot is in a bucket: its memory comes page by page through the pager, is verified, and is kept.
func TestFirecrackerFromBucket(t *testing.T) {
	onFirecrackers(t, func(t *testing.T, fc string) {
		proxy := newBucketProxy(t)
		location := services.URL("s3", proxy.URL)
		st, err := bucket.Open(context.Background(), location, bucket.Options{TempDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		k := freezeCounter(t, fc, st)
		k.env = append(k.env, "SPORE_STORE="+location)
		frames := func() int {
			all, err := filepath.Glob(filepath.Join(k.cache, "frames", "*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		wake := func() {
			t.Helper()
			r := k.resume()
			pid := k.vmm(r)
			memory, err := pagemap.OfUserfault(pid, k.bytes)
			if err != nil {
				t.Fatalf("its memory is not served by the pager: %v\n%s", err, r.said.String())
			}
			k.counts(memory)
			if err := r.Process.Signal(unix.SIGINT); err != nil {
				t.Fatal(err)
			}
			if said := r.end(t); !strings.Contains(said, "interrupted") {
				t.Errorf("spore resume says %q", said)
			}
			gone(t, pid)
		}
		proxy.asked.Store(0)
		wake()
		asked, kept := proxy.asked.Load(), frames()
		if asked == 0 || kept == 0 {
			t.Errorf("%d requests for memory, and %d frames are kept", asked, kept)
		}
		if _, err := os.Stat(filepath.Join(k.cache, "memory")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("memory was laid out as a file: %v", err)
		}
		// What is kept does not come again: by then nothing right could.
		proxy.asked.Store(0)
		proxy.damage.Store(true)
		wake()
		t.Logf("%d requests for memory at first, %d the second time; %d frames are kept", asked, proxy.asked.Load(), kept)

		// What is wrong is noticed, and the machine is not let run on.
		if err := os.RemoveAll(filepath.Join(k.cache, "frames")); err != nil {
			t.Fatal(err)
		}
		r := k.resume("--quiet")
		said := r.end(t)
		_, reason, _ := strings.Cut(said, "spore: ") // after the log
		if !strings.Contains(reason, "reading memory: ") || !strings.Contains(reason, "memfile of snapshot "+k.id.String()) || r.ProcessState.ExitCode() != 4 {
			t.Errorf("memory that is damaged in the bucket: %v\n%s", r.ProcessState, said)
		}
	})
}
