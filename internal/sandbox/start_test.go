package sandbox

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sporevm/spore/internal/guest"
)

// TestStartCommandFails has a ready command that would wait for ever: the start command's end is told at once, with what it printed.
func TestStartCommandFails(t *testing.T) {
	b := fresh(t, nil)
	spec := small()
	spec.StartCommand, spec.ReadyCommand = "echo one; echo two >&2; exit 7", "sleep 1000"
	begin := time.Now()
	b.leavesNothing(t, func() {
		snap, err := b.Create(t.Context(), spec, NoProgress{})
		var failed *StartError
		if !errors.As(err, &failed) {
			t.Fatalf("%v, %v", snap, err)
		}
		if failed.Command != spec.StartCommand || failed.Status.Code != 7 || !printed(failed.Output, "one", "two") {
			t.Errorf("%+v", failed)
		}
		if msg := err.Error(); !strings.Contains(msg, "exit status 7") || !strings.Contains(msg, "two") {
			t.Errorf("the message lacks what happened: %s", msg)
		}
	})
	if took := time.Since(begin); took > readyTimeout/2 {
		t.Errorf("it took %v", took)
	}
	b.hasOnlyDisks(t)
}

// printed tells whether these lines are what a command has printed, on its two streams: nobody knows in which order those are read.
func printed(output string, stdout, stderr string) bool {
	return output == stdout+"\n"+stderr+"\n" || output == stderr+"\n"+stdout+"\n"
}

// TestNeverReady gives the ready command a few seconds.
func TestNeverReady(t *testing.T) {
	b := fresh(t, nil)
	for _, c := range []struct {
		name, ready, status, output string
		limit                       time.Duration
		attempts                    int
	}{
		// It would hang where hardly any time is left; what it has said before is told.
		{"it fails each time", "echo >> /tries; test $(wc -l < /tries) -gt 4 && sleep 1000; echo not yet; exit 3", "exit status 3", "not yet", 10 * time.Second, 2},
		{"it hangs", "echo waiting; sleep 1000", "still running", "waiting", 6 * time.Second, 1},
	} {
		spec := small()
		spec.StartCommand, spec.ReadyCommand, spec.ReadyTimeout = "sleep 1000", c.ready, c.limit
		_, err := b.Create(t.Context(), spec, NoProgress{})
		var failed *ReadyError
		if !errors.As(err, &failed) {
			t.Fatalf("%s: %v", c.name, err)
		}
		if failed.Command != c.ready || failed.Attempts < c.attempts || failed.Elapsed > c.limit+patience || strings.TrimSpace(failed.Output) != c.output {
			t.Errorf("%s: %+v", c.name, failed)
		}
		if msg := err.Error(); !strings.Contains(msg, c.status) || !strings.Contains(msg, c.output) || !strings.Contains(msg, c.ready) {
			t.Errorf("%s: the message lacks what happened: %s", c.name, msg)
		}
		b.isClean(t)
	}
	b.hasOnlyDisks(t)
}

// hasOnlyDisks checks that no machine was published.
func (b bench) hasOnlyDisks(t *testing.T) {
	t.Helper()
	for _, id := range b.ids(t) {
		if m := b.open(t, id).Metadata(); m.HasMemory() {
			t.Errorf("snapshot %s was published: %+v", id, m)
		}
	}
}

// bareImage makes an OCI layout of one program, as whose user, folder and environment a container would run.
func bareImage(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(lab.probe())
	if err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "probe", Mode: 0o755, Size: int64(len(program))},
		{Typeflag: tar.TypeDir, Name: "work/", Mode: 0o755, Uid: 1234, Gid: 100},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(program); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(t, layer)},
			Config: v1.Config{User: "1234:100", WorkingDir: "/work", Env: []string{"GREETING=hello", "PATH=/"}, Entrypoint: []string{"/probe"}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = path.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

func diffIDs(t *testing.T, layer v1.Layer) []v1.Hash {
	t.Helper()
	id, err := layer.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return []v1.Hash{id}
}

// TestBareImage has no shell, no /etc and no /tmp; its commands are written as JSON.
func TestBareImage(t *testing.T) {
	b := fresh(t, nil)
	spec := small()
	spec.Image, spec.StartCommand, spec.ReadyCommand = bareImage(t), `["/probe", "live"]`, `["probe", "lives"]`
	spec.Steps = []Step{{Kind: StepEnv, Args: []string{"GREETING", "good morning"}}}
	id := b.create(t, spec)
	s := b.resume(t, id)
	run := func(cmd guest.Command) string {
		t.Helper()
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if status, err := s.Run(t.Context(), cmd); err != nil || !status.Success() {
			t.Fatalf("%v, %v: %s", status, err, out.String())
		}
		return strings.TrimSpace(out.String())
	}
	if got, want := run(s.Command([]string{"probe", "id"})), "1234:100 /work good morning"; got != want {
		t.Errorf("a command runs as %q, want %q", got, want)
	}
	if got, want := run(guest.Command{Args: []string{"/probe", "id"}}), "1234:100 /work good morning"; got != want {
		t.Errorf("a command that says nothing runs as %q, want %q", got, want)
	}
	stat, err := s.Agent().Stat(t.Context(), "/work/count")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start command goes on", func() bool {
		now, err := s.Agent().Stat(t.Context(), "/work/count")
		return err == nil && now.ModTime.After(stat.ModTime)
	})
	m := b.open(t, id).Metadata()
	if m.StartCommand != spec.StartCommand || m.Context.User != "1234:100" || m.Context.Workdir != "/work" || m.Entrypoint[0] != "/probe" {
		t.Errorf("metadata: %+v", m)
	}
}

func TestShell(t *testing.T) {
	for line, want := range map[string]string{
		"echo x":                 "/bin/sh|-c|echo x",
		`["/a", "b c"]`:          "/a|b c",
		` ["a"] `:                "a",
		`[ -f /x ] && echo`:      "/bin/sh|-c|[ -f /x ] && echo",
		`[]`:                     "/bin/sh|-c|[]",
		`["a", 1]`:               `/bin/sh|-c|["a", 1]`,
		`["a"] || ["b"]`:         `/bin/sh|-c|["a"] || ["b"]`,
		`[ "$x" = "y" ]; exit 0`: `/bin/sh|-c|[ "$x" = "y" ]; exit 0`,
	} {
		if got := strings.Join(shell(line), "|"); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}
