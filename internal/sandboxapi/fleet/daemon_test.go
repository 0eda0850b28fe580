package fleet_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// lab is made for the first test that needs machines.
var lab = struct {
	sync.Once
	*sandboxtest.Lab
	err error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if lab.Lab != nil {
		lab.Close()
	}
	os.Exit(code)
}

// daemon is a fleet that can be stopped and started again.
type daemon struct {
	t     *testing.T
	state string
	run   string
	host  *sandbox.Host
	*fleet.Fleet
}

func newDaemon(t *testing.T, change func(*fleet.Options)) *daemon {
	t.Helper()
	lab.Do(func() { lab.Lab, lab.err = sandboxtest.New(t.Context()) })
	if lab.err != nil {
		t.Fatalf("preparing the tests: %v", lab.err)
	}
	run, err := os.MkdirTemp("", "spore-run") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, state: t.TempDir(), run: run}
	t.Cleanup(func() {
		if left, _ := os.ReadDir(run); len(left) > 0 {
			t.Errorf("left in the run folder: %v", left)
		}
		os.RemoveAll(run)
	})
	d.start(change)
	t.Cleanup(func() {
		if err := d.Close(context.Background(), fleet.Kill); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return d
}

func (d *daemon) start(change func(*fleet.Options)) {
	d.t.Helper()
	log := slog.New(slog.NewTextHandler(d.t.Output(), nil))
	host, err := lab.Host(d.run, log)
	if err != nil {
		d.t.Fatal(err)
	}
	o := fleet.Options{Host: host, StateDir: d.state, Log: log}
	if change != nil {
		change(&o)
	}
	d.host = host
	if d.Fleet, err = fleet.Open(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) create(spec fleet.CreateSpec) fleet.Info {
	d.t.Helper()
	if spec.Template == "" {
		spec.Template = sandboxtest.Name
	}
	i, err := d.Create(d.t.Context(), spec)
	if err != nil {
		d.t.Fatal(err)
	}
	return i
}

// patience is for what takes a second where the host has nothing else to do.
const patience = 5 * time.Minute

// sh runs a line in a sandbox and returns what it prints.
func (d *daemon) sh(id, line string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	client, err := d.Agent(ctx, id)
	if err != nil {
		d.t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := client.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil {
		d.t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || !status.Success() {
		d.t.Fatalf("%s: %v, %v: %s", line, status, err, &out)
	}
	return strings.TrimSpace(out.String())
}

func want(t *testing.T, err error, kind fleet.Kind) {
	t.Helper()
	if err == nil || fleet.KindOf(err) != kind {
		t.Errorf("got error %v (kind %d), want kind %d", err, fleet.KindOf(err), kind)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so within %v: %s", patience, what)
		}
	}
}

func (d *daemon) forks() int {
	d.t.Helper()
	tpl, err := d.Template(d.t.Context(), sandboxtest.Name)
	if err != nil {
		d.t.Fatal(err)
	}
	return tpl.Forks
}

// isBare checks that no sandbox has left anything in the store.
func (d *daemon) isBare() {
	d.t.Helper()
	folders, err := filepath.Glob(filepath.Join(lab.Dir, "store", "*-*"))
	if err != nil || len(folders) != 2 { // the image's disk, and the template
		d.t.Errorf("in the store are %v, %v", folders, err)
	}
	names, err := filepath.Glob(filepath.Join(lab.Dir, "store", ".names", "*"))
	if err != nil || len(names) != 1 {
		d.t.Errorf("names in the store are %v, %v", names, err)
	}
}
