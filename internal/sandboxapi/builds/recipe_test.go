package builds

import (
	"archive/tar"
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

func newBuilds(t *testing.T) *Builds {
	t.Helper()
	b, err := New(Options{Dir: filepath.Join(t.TempDir(), "files")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestInstructionsBecomeSteps(t *testing.T) {
	b := newBuilds(t)
	if err := b.Receive(b.Link("alice", "h"), bytes.NewReader(archive(t, tar.Header{Name: "src/a"}, tar.Header{Name: "src/b"}))); err != nil {
		t.Fatal(err)
	}
	recipe := Recipe{Image: "debian:12", Instructions: []Instruction{
		{Kind: "run", Args: []string{"one"}},
		{Kind: "USER", Args: []string{"app"}},
		{Kind: "RUN", Args: []string{"two", "root"}},
		{Kind: "RUN", Args: []string{"three", "app"}},
		{Kind: "ENV", Args: []string{"A", "b", "C", "d"}},
		{Kind: "COPY", Args: []string{"src/*", "/it's", "app", "0750"}, Files: "h"},
	}}
	var spec sandbox.CreateSpec
	plan, err := b.plan(t.Context(), "alice", recipe, &spec)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.remove()
	want := []string{
		"1 run one", "2 user app", "3 user root", "3 run two", "3 user app", "4 run three", "5 env A b", "5 env C d",
		"6 copy src/a /it's/a", "6 copy src/b /it's/b", "6 user root", `6 run chown -R -- 'app' '/it'\''s'`, `6 run chmod -R 750 -- '/it'\''s'`, "6 user app",
	}
	var got []string
	for i, s := range spec.Steps {
		args := strings.ReplaceAll(strings.Join(s.Args, " "), plan.trees[0]+"/", "")
		got = append(got, fmt.Sprintf("%s %s %s", plan.instruction(i+1), s.Kind, args))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if got := plan.culprit(fmt.Errorf("creating: %w", &sandbox.StepError{Number: 4})); got != "3" {
		t.Errorf("the fault is in %s", got)
	}
	if got := plan.culprit(&sandbox.ReadyError{}); got != "finalize" {
		t.Errorf("the fault is in %s", got)
	}
}

func TestRecipesThatMakeNoSense(t *testing.T) {
	b := newBuilds(t)
	step := func(kind string, args ...string) Recipe {
		return Recipe{Image: "debian:12", Instructions: []Instruction{{Kind: kind, Args: args, Files: "h"}}}
	}
	for _, r := range []Recipe{
		{}, {Image: "a", Template: "b"}, {Image: "dir:/etc"}, {Image: "tar:/x"}, {Image: "oci:/x"}, {Image: "oci-archive:/x"}, {Image: "docker-archive:/x"},
		step("FLY"), step("RUN"), step("RUN", "a", "b", "c"), step("RUN", "a\x00b"), step("ENV", "A"), step("WORKDIR"), step("USER", ""), step("COPY", "a"),
		step("COPY", "a", "/a"), // was not sent
		{Image: "a", Instructions: make([]Instruction, maxSteps+1)},
	} {
		var spec sandbox.CreateSpec
		if _, err := b.plan(t.Context(), "", r, &spec); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestRequests(t *testing.T) {
	b := newBuilds(t)
	build, err := b.Request("alice", Machine{Name: "py", Tags: []string{"v1", "default"}, MemoryMB: 511})
	if err != nil || strings.Join(build.Names, " ") != "py py:v1" || b.spec(build).MemoryBytes != 512<<20 {
		t.Errorf("%+v %v", build, err)
	}
	for _, m := range []Machine{{Name: ""}, {Name: "../x"}, {Name: "sandbox/x"}, {Name: "a", Tags: []string{"/"}}, {Name: "a", MemoryMB: 4}, {Name: "a", CPUs: 100}} {
		if _, err := b.Request("alice", m); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if _, err := b.Get("bob", build.ID.String()); fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("bob finds it: %v", err)
	}
	if got, err := b.Get("", build.ID.String()); err != nil || got != build {
		t.Errorf("%v %v", got, err)
	}
	build.finish(fmt.Errorf("no"), "2")
	if r := build.Report(0, 10, "error"); r.Status != Failed || r.Step != "2" || len(r.Logs) != 1 || r.Logs[0].Fields["step"] != "2" {
		t.Errorf("%+v", r)
	}
}

func TestOneKeyDoesNotTakeAllTurns(t *testing.T) {
	b := newBuilds(t)
	request := func(owner string) *Build {
		build, err := b.Request(owner, Machine{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		return build
	}
	admit := func(build *Build) error {
		spec := b.spec(build)
		spec.Image = "debian:12"
		err := b.admit(build, spec)
		if err == nil {
			b.wg.Done() // nothing runs here
		}
		return err
	}
	first := request("alice")
	if err := admit(first); err != nil {
		t.Fatal(err)
	}
	if err := admit(first); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("it starts twice: %v", err)
	}
	for range maxWaiting - 1 {
		if err := admit(request("alice")); err != nil {
			t.Fatal(err)
		}
	}
	if err := admit(request("alice")); fleet.KindOf(err) != fleet.Quota {
		t.Errorf("one too many: %v", err)
	}
	if err := admit(request("bob")); err != nil {
		t.Error(err)
	}
	first.finish(nil, "")
	if err := admit(request("alice")); err != nil {
		t.Error(err)
	}
	for range 2 * maxBuilds {
		request("eve")
	}
	if n := len(b.builds); n > maxBuilds {
		t.Errorf("%d builds are remembered", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := admit(request("bob")); fleet.KindOf(err) != fleet.Busy {
		t.Errorf("it starts at the end: %v", err)
	}
}
