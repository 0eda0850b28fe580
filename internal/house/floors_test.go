package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sporevm/spore"

// floors is the plan of the house (ARCHITECTURE.md). A room imports only rooms on lower floors, and itself.
var floors = map[string]int{
	"internal/block":      0,
	"internal/store":      0,
	"internal/expose":     1,
	"internal/guest":      1,
	"internal/image":      1,
	"internal/network":    1,
	"internal/snapshot":   1,
	"internal/vmm":        1,
	"internal/compare":    2,
	"internal/farmemory":  2,
	"internal/registry":   2,
	"internal/sandbox":    2,
	"internal/bench":      4,
	"internal/console":    3,
	"internal/sandboxapi": 3,
	"internal/cli":        5,
	"cmd/spore":           6,
	"cmd/spore-agent":     6,
	// Tools and tests stand outside: nothing may import them.
	"internal/house": 7,
	"test/console":   7,
	"test/e2e":       7,
	"test/sdk":       7,
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
	Standard                           bool
	Module                             *struct{ Path string }
}

func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports,Standard,Module"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list %v: %v\n%s", args, err, exit.Stderr)
		}
		t.Fatalf("go list %v: %v", args, err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		all = append(all, p)
	}
}

// room tells which room of the house an import path is in: "" for the world outside.
func room(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	parts := strings.SplitN(rest, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// allowed is the rule. Tests may reach sideways, to check two rooms against each other, but never up.
func allowed(from, to string, test bool) bool {
	if to == "" || from == to {
		return true
	}
	f, t := floors[from], floors[to]
	return t < f || (test && t == f)
}

func TestFloors(t *testing.T) {
	for _, p := range list(t, "./...") {
		from := room(p.ImportPath)
		if _, ok := floors[from]; !ok {
			t.Errorf("%s is in no room of the plan: give %q a floor in this test and in ARCHITECTURE.md", p.ImportPath, from)
			continue
		}
		for _, to := range p.Imports {
			if !allowed(from, room(to), false) {
				t.Errorf("%s (floor %d) imports %s (floor %d): only lower floors may be imported", p.ImportPath, floors[from], to, floors[room(to)])
			}
		}
		for _, to := range slices.Concat(p.TestImports, p.XTestImports) {
			if !allowed(from, room(to), true) {
				t.Errorf("a test of %s (floor %d) imports %s (floor %d): tests may not reach up", p.ImportPath, floors[from], to, floors[room(to)])
			}
		}
	}
}

func TestRule(t *testing.T) {
	for _, c := range []struct {
		from, to   string
		test, want bool
	}{
		{"internal/snapshot", "internal/block", false, true},
		{"internal/snapshot", "internal/vmm", false, false},
		{"internal/snapshot", "internal/vmm", true, true},
		{"internal/block", "internal/snapshot", true, false},
		{"internal/vmm", "internal/vmm", false, true},
		{"internal/cli", "", false, true},
		{"cmd/spore", "internal/cli", false, true},
		{"internal/cli", "internal/house", true, false},
	} {
		if got := allowed(c.from, c.to, c.test); got != c.want {
			t.Errorf("allowed(%s, %s, test=%v) = %v, want %v", c.from, c.to, c.test, got, c.want)
		}
	}
}

// agentModules is all that the guest agent may be made of: each module more is memory in every guest and code that runs cold after every wake.
var agentModules = []string{
	"connectrpc.com/connect",
	"github.com/google/uuid",
	"golang.org/x/net",
	"golang.org/x/sys",
	"golang.org/x/text",
	"google.golang.org/protobuf",
}

func TestAgentStaysSmall(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/spore-agent") {
		switch {
		case p.Standard:
		case strings.HasPrefix(p.ImportPath, module+"/"):
			if r := room(p.ImportPath); r != "cmd/spore-agent" && r != "internal/guest" {
				t.Errorf("the agent contains %s: it may only contain packages of internal/guest", p.ImportPath)
			}
			if p.ImportPath == module+"/internal/guest" || strings.HasPrefix(p.ImportPath, module+"/internal/guest/agentbin") {
				t.Errorf("the agent contains %s, the host's side", p.ImportPath)
			}
		case p.Module == nil || !slices.Contains(agentModules, p.Module.Path):
			t.Errorf("the agent contains %s of a module that is not on its list", p.ImportPath)
		}
	}
}
