package cli

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket/buckettest"
)

// services are object stores for scripts.
var services buckettest.Services

// withServices runs tests while the services run.
type withServices struct{ m *testing.M }

func (w withServices) Run() int {
	return buckettest.Run(w.m, "../..", func(s buckettest.Services) { services = s })
}

func TestMain(m *testing.M) {
	testscript.Main(withServices{m}, map[string]func(){
		"spore": func() {
			streams := Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // as cmd/spore does
			defer stop()
			os.Exit(Main(ctx, os.Args[1:], streams, "v0-test"))
		},
		pageOwner: func() {
			fmt.Fprintln(os.Stderr, ownPages())
			os.Exit(1)
		},
	})
}

func TestScripts(t *testing.T) {
	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(images.Close) // scripts run in parallel, and end before
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: false,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("SPORE_STORE", filepath.Join(env.WorkDir, "store"))
			bin, _, _ := strings.Cut(env.Getenv("PATH"), string(os.PathListSeparator)) // where spore is
			env.Setenv("BIN", bin)
			env.Setenv("SANDBOX_DIR", filepath.Join(env.WorkDir, "run"))
			env.Setenv("REGISTRY", strings.TrimPrefix(images.URL, "http://"))
			env.Setenv("S3", services.URL("s3", ""))
			env.Setenv("GS", services.URL("gs", ""))
			for _, name := range []string{"STORAGE_EMULATOR_HOST", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} {
				env.Setenv(name, os.Getenv(name))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":     cmdExit,
			"mkstore":  cmdMkstore,
			"flip":     cmdFlip,
			"truncate": cmdTruncate,

			"mkfs":       cmdMkfs,
			"until":      cmdUntil,
			"gone":       cmdGone,
			"killserver": cmdKillServer,
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "mounts":
				return mountable(), nil
			case "nbd": // the kernel's client
				return hostFiles("/").has("/sys/module/nbd"), nil
			}
			return false, fmt.Errorf("no condition %q", name)
		},
	})
}

// cmdExit runs a command and checks its exit code: exit 3 spore inspect nothing
func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if coded, ok := err.(interface{ ExitCode() int }); ok {
		code = coded.ExitCode()
	} else if err != nil {
		ts.Fatalf("running %v: %v", args[1:], err)
	}
	if want := args[0]; want != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s", code, want)
	}
}

// The snapshots of mkstore.
var (
	idImage  = uuid.MustParse("11111111-1111-4111-8111-111111111111")
	idParent = uuid.MustParse("aaaa0000-2222-4222-8222-222222222222")
	idChild  = uuid.MustParse("aaaa1111-3333-4333-8333-333333333333")
)

// cmdMkstore fills $SPORE_STORE with an image's disk, a machine made of it (named base) and a child of the machine (named child and other/name).
func cmdMkstore(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: mkstore")
	}
	if err := fillStore(ts.Getenv("SPORE_STORE"), ts.MkAbs("cache")); err != nil {
		ts.Fatalf("filling the store: %v", err)
	}
}

const (
	testPage   = block.DefaultBlockSize
	testDisk   = 64 * testPage
	testMemory = 32 * testPage
)

func fillStore(root, cache string) error {
	st, err := store.OpenDir(root)
	if err != nil {
		return err
	}
	repo, err := snapshot.Open(st, cache)
	if err != nil {
		return err
	}
	ctx := context.Background()
	created := time.Now().Add(-3 * time.Hour).UTC()
	image := snapshot.Metadata{
		Kind: snapshot.KindImage, Arch: "amd64", Created: created, Image: snapshot.Image{Ref: "debian:12", Digest: "sha256:00"},
	}
	machine := image
	machine.Kind, machine.VCPUs, machine.Net, machine.Created = snapshot.KindMachine, 2, "none", created.Add(time.Hour)
	machine.Engine = snapshot.Engine{Name: "qemu", Version: "0.0.1", Machine: "microvm", Accel: "tcg"}
	machine.StartCommand = "serve"
	machine.Context = snapshot.Context{User: "app", Workdir: "/srv", Env: map[string]string{"LANG": "C.UTF-8"}}
	machine.Labels = map[string]string{"team": "fungi"}
	child := machine
	child.Created = created.Add(2 * time.Hour)

	disk, err := addSnapshot(ctx, repo, idImage, nil, image, 8, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	parent, err := addSnapshot(ctx, repo, idParent, disk, machine, 2, 16)
	if err != nil {
		return err
	}
	defer parent.Close()
	last, err := addSnapshot(ctx, repo, idChild, parent, child, 1, 3)
	if err != nil {
		return err
	}
	defer last.Close()
	for name, id := range map[string]uuid.UUID{"base": idParent, "child": idChild, "other/name": idChild} {
		if err := repo.Tag(ctx, name, id); err != nil {
			return err
		}
	}
	return nil
}

func addSnapshot(ctx context.Context, repo *snapshot.Repo, id uuid.UUID, parent *snapshot.Snapshot, m snapshot.Metadata, diskPages, memoryPages int) (*snapshot.Snapshot, error) {
	d, err := repo.NewDraft(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	defer d.Abort()
	disk, err := d.Disk(testDisk)
	if err != nil {
		return nil, err
	}
	if err := disk.Write(0, testPages(id[0], diskPages)); err != nil {
		return nil, err
	}
	if memoryPages > 0 {
		memory, err := d.Memory(testMemory)
		if err != nil {
			return nil, err
		}
		if err := memory.Write(0, testPages(id[4], memoryPages)); err != nil {
			return nil, err
		}
		if err := d.State([]byte("device state")); err != nil {
			return nil, err
		}
	}
	return d.Commit(ctx, m)
}

func testPages(seed byte, n int) []byte {
	p := make([]byte, n*testPage)
	for i := range p {
		p[i] = byte(i*7+i/testPage) ^ seed | 1
	}
	return p
}

// cmdFlip changes one bit in the middle of a file: flip FILE
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip FILE")
	}
	name := ts.MkAbs(args[0])
	data, err := os.ReadFile(name)
	ts.Check(err)
	data[len(data)/2] ^= 0x10
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.WriteFile(name, data, 0o600))
}

// cmdTruncate cuts a file in half: truncate FILE
func cmdTruncate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: truncate FILE")
	}
	name := ts.MkAbs(args[0])
	st, err := os.Stat(name)
	ts.Check(err)
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.Truncate(name, st.Size()/2))
}
