package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

func TestDocsAreUpToDate(t *testing.T) {
	const dir = "../../docs/commands"
	pages := Docs()
	for name, want := range pages {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v: run `make docs`", err)
		} else if diff := cmp.Diff(want, string(have)); diff != "" {
			t.Errorf("%s is out of date: run `make docs` (-want +have):\n%s", name, diff)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := pages[filepath.Base(f)]; !ok {
			t.Errorf("%s documents nothing: run `make docs`", f)
		}
	}
}

func TestWriteDocsRemovesOldPages(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "teleport.md")
	if err := os.WriteFile(old, []byte("# spore teleport"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteDocs(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the page of a command that is no more: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "create.md")); err != nil {
		t.Error(err)
	}
}

// TestEnvironmentIsDocumented finds variables that are read and that no page tells of.
func TestEnvironmentIsDocumented(t *testing.T) {
	told := indexPage((&app{Streams: Streams{Getenv: os.Getenv}}).root())
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	read := regexp.MustCompile(`(?:Getenv|home)\("([A-Z_]+)"`)
	found := map[string]bool{}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range read.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	for _, own := range []string{"HOME", "TERM", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} { // as everywhere; and named together with its kin
		delete(found, own)
	}
	for name := range found {
		if !strings.Contains(told, name) {
			t.Errorf("%s is read, and documented nowhere", name)
		}
	}
	if !found["SPORE_STORE"] || !found["SPORE_SOCKET"] {
		t.Errorf("found only %v", found)
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64 // MiB; 0: an error
	}{
		{"512", 512}, {"512M", 512}, {"512m", 512}, {"512MiB", 512}, {"512MB", 512}, {"2G", 2048}, {"2GiB", 2048}, {"1.5g", 1536}, {"1T", 1 << 20}, {" 8 ", 8},
		{"", 0}, {"0", 0}, {"0G", 0}, {"-1", 0}, {"-2G", 0}, {"G", 0}, {"1K", 0}, {"1.0001", 0}, {"1e9", 0}, {"0x10", 0}, {"inf", 0}, {"nan", 0}, {"1_000", 0},
		{"9999999T", 0}, {"512 apples", 0}, {"1..5", 0}, {"1025T", 0}, {"--5", 0},
	} {
		got, err := parseSize(c.in)
		if c.want == 0 {
			if err == nil {
				t.Errorf("parseSize(%q) = %d, want an error", c.in, got)
			}
		} else if err != nil || got != c.want<<20 {
			t.Errorf("parseSize(%q) = %d, %v, want %d MiB", c.in, got, err, c.want)
		}
	}
}

func TestParseSizeReadsWhatItWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := size(rapid.Int64Range(1, 1<<24).Draw(t, "MiB") << 20)
		var again size
		if err := again.Set(s.String()); err != nil || again != s {
			t.Fatalf("%d MiB is written %q, which reads as %d: %v", s>>20, s.String(), again>>20, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512", "2G", "-1", "1.5GiB", "", "9e9T", "∞"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && (n <= 0 || n > maxSize || n%(1<<20) != 0) {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 512 << 20: "512 MiB", 3 << 40: "3.0 TiB", 5000 << 40: "5000 TiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSingleDash(t *testing.T) {
	root := (&app{Streams: Streams{Getenv: os.Getenv}}).root()
	for _, c := range []struct{ in, want string }{
		{"create-build -to-build ID -storage .local-build", "create-build --to-build ID --storage .local-build"},
		{"create-build -to-build=ID -hugepages=false -vcpu 2", "create-build --to-build=ID --hugepages=false --vcpu 2"},
		{"create-build --to-build ID -memory 512", "create-build --to-build ID --memory 512"},
		{"create-build -start-cmd -memory -ready-cmd x", "create-build --start-cmd -memory --ready-cmd x"}, // a value may look like a flag
		{"resume-build -from-build ID -cold -v -iterations 10", "resume-build --from-build ID --cold -v --iterations 10"},
		{"resume-build -pause -- -pause", "resume-build --pause -- -pause"},
		{"resume-build -nonsense", "resume-build -nonsense"},
		{"-v resume-build -pause", "-v resume-build --pause"},
		{"run -it image -- ls -memory", "run -it image -- ls -memory"},
		{"create -memory 5", "create -memory 5"},
	} {
		got := strings.Join(singleDash(root, strings.Fields(c.in)), " ")
		if got != c.want {
			t.Errorf("%s\nbecomes %s\nwant    %s", c.in, got, c.want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{"USR1": unix.SIGUSR1, "SIGUSR2": unix.SIGUSR2, "sigterm": unix.SIGTERM, "10": unix.SIGUSR1} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("parseSignal(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "KILL", "STOP", "9", "0", "-1", "10x", "SIGNAL", "4711"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("parseSignal(%q) = %v, want an error", in, got)
		}
	}
}

func TestStepsKeepTheirOrder(t *testing.T) {
	a := &app{Streams: Streams{Getenv: os.Getenv}}
	c := a.createCommand()
	args := []string{"--run", "one", "--env", "A=1=2", "--copy", "src:/dst:x", "--run", "two, three", "--workdir", "/w", "--user", "app", "--run", "four"}
	if err := c.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	got := c.Flags().Lookup("run").Value.(*stepFlag).to.list
	want := []sandbox.Step{
		{Kind: "run", Args: []string{"one"}}, {Kind: "env", Args: []string{"A", "1=2"}}, {Kind: "copy", Args: []string{"src", "/dst:x"}},
		{Kind: "run", Args: []string{"two, three"}}, {Kind: "workdir", Args: []string{"/w"}}, {Kind: "user", Args: []string{"app"}}, {Kind: "run", Args: []string{"four"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

func TestExitCodes(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("doing: %w", errors.Join(err, errors.New("also this"))) }
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything"), 1},
		{usageErrorf("wrong"), 2},
		{&snapshot.NotFoundError{}, 3},
		{&snapshot.AmbiguousError{}, 3},
		{&snapshot.CorruptError{Err: errors.New("x")}, 4},
		{&block.CorruptError{Err: errors.New("x")}, 4},
		{&block.Told{Text: "x", Corrupt: &block.CorruptError{}}, 4},
		{&client.Error{Status: 500, Damaged: true}, 4},
		{&client.Error{Status: 404, Damaged: true}, 4}, // a sandbox that died of it
		{&client.Error{Status: 500}, 1},
		{&snapshot.IncompatibleError{}, 5},
		{&sandbox.ReadyError{}, 6},
		{&sandbox.StartError{}, 6},
		{store.ErrExist, 7},
		{&snapshot.DependentsError{}, 7},
		{Interrupted{unix.SIGINT}, 130},
		{Interrupted{unix.SIGTERM}, 143},
		{&commandStatus{guest.ExitStatus{Code: 42}}, 42},
		{&commandStatus{guest.ExitStatus{Code: -1, Signal: unix.SIGSEGV}}, 139},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exitCode(%v) = %d, want %d", c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := exitCode(wrapped(c.err)); got != c.want {
			t.Errorf("wrapped, exitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), 125},
		{&snapshot.NotFoundError{}, 125},
		{&execError{fs.ErrNotExist}, 127},
		{&execError{fs.ErrPermission}, 126},
		{fs.ErrNotExist, 125}, // of the host, not of the guest
	} {
		if got := runCode(c.err); got != c.want {
			t.Errorf("runCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestHints(t *testing.T) {
	for want, err := range map[string]error{
		"spore gc":     fmt.Errorf("writing memory: %w", store.ErrFull),
		"spore verify": &block.CorruptError{Err: errors.New("x")},
		"spore serve":  &noDaemon{"/run/spore/daemon.sock"},
		"--store":      &fs.PathError{Op: "open", Path: "/root/store", Err: fs.ErrPermission},
	} {
		if got := hintFor(fmt.Errorf("doing: %w", err)); !strings.Contains(got, want) {
			t.Errorf("the hint for %q is %q, which does not say %q", err, got, want)
		}
	}
	for _, err := range []error{errors.New("anything"), guest.ErrNoSpace} {
		if got := hintFor(err); got != "" {
			t.Errorf("the hint for %q is %q", err, got)
		}
	}
}

func TestInterruption(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(Interrupted{unix.SIGTERM})
	var out, errs bytes.Buffer
	getenv := func(name string) string { return map[string]string{"HOME": t.TempDir()}[name] }
	code := Main(ctx, []string{"create", "dir:" + t.TempDir()}, Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: getenv}, "v0")
	if code != 143 || !strings.Contains(errs.String(), "interrupted") || out.Len() > 0 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out.String(), errs.String())
	}
}

func TestProgressOffATerminal(t *testing.T) {
	var log bytes.Buffer
	a := &app{Streams: Streams{Err: &log, Getenv: func(string) string { return "" }}}
	d := a.show()
	d.Phase("pull")
	d.Advance(512<<10, 1<<20)
	d.Phase("pull") // no news
	d.told = d.told.Add(-2 * plainEvery)
	d.Advance(1<<20, 1<<20)
	d.Phase("boot")
	d.Phase("pause")
	d.stop() // it failed there
	got := log.String()
	for _, want := range []string{"pull: 1.0 MiB of 1.0 MiB, ", "pull: done in ", "boot: done in "} {
		if strings.Count(got, want) != 1 {
			t.Errorf("want %q once in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "pause") || strings.Contains(got, "\x1b") {
		t.Errorf("an unfinished phase is not done, and no log is drawn on:\n%s", got)
	}
	d.Phase("after") // the display is over
	if log.String() != got {
		t.Errorf("told after its end:\n%s", log.String())
	}
}

func TestProgressQuiet(t *testing.T) {
	var log bytes.Buffer
	a := &app{Streams: Streams{Err: &log, Getenv: func(string) string { return "" }}, quiet: true}
	d := a.show()
	d.Phase("pull")
	d.Advance(1, 2)
	d.end()
	a.say("done")
	if log.Len() > 0 {
		t.Errorf("quiet said %q", log.String())
	}
}

func TestWakeTable(t *testing.T) {
	runs := make([]phasesMS, 10)
	for i := range runs {
		runs[i] = inMS(sandbox.Phases{Open: time.Millisecond, Total: time.Duration(i+1) * 10 * time.Millisecond})
	}
	all := summarize(runs)
	total := all[len(all)-1]
	want := spread{Phase: "total", N: 10, Min: 10, Avg: 55, Max: 100, StdDev: total.StdDev, P50: 50, P95: 100, P99: 100}
	if diff := cmp.Diff(want, total); diff != "" {
		t.Errorf("total (-want +got):\n%s", diff)
	}
	var b bytes.Buffer
	printSpreads(&b, all)
	if !strings.Contains(b.String(), "  p95       1.0") || !strings.Contains(b.String(), "     100.0\n") {
		t.Errorf("table:\n%s", b.String())
	}
}
