package fctest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// spec is Firecracker's own description of its API, as far as it is compared.
type spec struct {
	Info  struct{ Version string }
	Paths map[string]map[string]struct {
		Parameters []struct {
			In     string
			Schema reference
		}
	}
	Definitions map[string]struct {
		Required   []string
		Properties map[string]property
	}
}

type reference struct {
	Ref string `yaml:"$ref"`
}

func (r reference) name() string { return r.Ref[strings.LastIndexByte(r.Ref, '/')+1:] }

type property struct {
	reference `yaml:",inline"`
	Type      string
	Enum      []string
	Minimum   *float64
	Maximum   *float64
	Items     reference
}

// ownDescription reads the file that Firecracker's releases have beside the binary, or that SPORE_FIRECRACKER_API names, and returns its minor version too.
func ownDescription(t *testing.T) (s spec, minor int) {
	t.Helper()
	path := os.Getenv("SPORE_FIRECRACKER_API")
	if path == "" {
		beside, _ := filepath.Glob(filepath.Join(filepath.Dir(os.Getenv("SPORE_FIRECRACKER")), "firecracker_spec-*.yaml"))
		if len(beside) == 0 {
			t.Skip("Firecracker's own description of its API is not here: SPORE_FIRECRACKER_API names none, and none lies beside SPORE_FIRECRACKER")
		}
		path = beside[0]
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, &s)
	}
	if err == nil {
		_, err = fmt.Sscanf(s.Info.Version, "1.%d.", &minor)
	}
	if err != nil {
		t.Fatalf("reading %s: %v", path, err)
	}
	return s, minor
}

// TestDescription holds api.json against Firecracker's own description: each route and each field that is in ours is there, and takes the same.
func TestDescription(t *testing.T) {
	own, minor := ownDescription(t)
	ours, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	compared := map[string]bool{}
	for _, r := range ours.Routes {
		operation, ok := own.Paths[r.Path][strings.ToLower(r.Method)]
		if !ok {
			t.Errorf("Firecracker 1.%d has no %s %s", minor, r.Method, r.Path)
		}
		body := ""
		for _, p := range operation.Parameters {
			if p.In == "body" {
				body = p.Schema.name()
			}
		}
		if (body == "") != (r.Body == "") {
			t.Errorf("%s %s takes %q, ours %q", r.Method, r.Path, body, r.Body)
		} else if body != "" {
			own.compare(t, ours, r.Body, body, minor, compared)
		}
	}
	for name := range ours.Types {
		if !compared[name] {
			t.Errorf("%s is in no body", name)
		}
	}
}

// compare holds a type of ours against one of Firecracker's, and those in it.
func (s spec) compare(t *testing.T, ours description, name, theirs string, minor int, compared map[string]bool) {
	t.Helper()
	compared[name] = true
	definition, fields := s.Definitions[theirs], ours.Types[name]
	for key, f := range fields {
		p, ok := definition.Properties[key]
		if known := minor >= f.Since && (f.Until == 0 || minor <= f.Until); known != ok {
			t.Errorf("%s of %s: in Firecracker 1.%d %v, in ours %v", key, name, minor, ok, known)
		}
		if !ok {
			continue
		}
		if required := slices.Contains(definition.Required, key); required != f.Required {
			t.Errorf("%s of %s: required %v, in ours %v", key, name, required, f.Required)
		}
		inner, list := strings.CutPrefix(f.Type, "list of ")
		ref := p.reference
		if list {
			ref = p.Items
		}
		switch {
		case p.Type == f.Type:
			if !slices.Equal(p.Enum, f.Enum) || p.Minimum != nil && (f.Min == nil || *f.Min != *p.Minimum) || p.Maximum != nil && (f.Max == nil || *f.Max != *p.Maximum) {
				t.Errorf("%s of %s takes %v %v to %v, in ours %v %v to %v", key, name, p.Enum, p.Minimum, p.Maximum, f.Enum, f.Min, f.Max)
			}
		case list != (p.Type == "array") || ref.Ref == "":
			t.Errorf("%s of %s is a %q, in ours a %q", key, name, p.Type, f.Type)
		case ours.Types[inner] != nil:
			s.compare(t, ours, inner, ref.name(), minor, compared)
		}
	}
	for _, key := range definition.Required {
		if _, ok := fields[key]; !ok {
			t.Errorf("ours lacks %s of %s, which is required", key, name)
		}
	}
}
