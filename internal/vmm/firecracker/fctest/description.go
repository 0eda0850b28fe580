// Package fctest is a Firecracker for tests: a process that answers Firecracker's API as the real one does, refuses every body and every order of requests that it
// would refuse, and maps, pauses and snapshots a memory in which a "guest" counts. What it holds true is in api.json, and is compared with a real one where there
// is one.
package fctest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

//go:embed api.json
var apiJSON []byte

// description is api.json.
type description struct {
	Routes []route                     `json:"routes"`
	Types  map[string]map[string]field `json:"types"`
}

type route struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Body   string `json:"body"`
	When   string `json:"when"`
}

type field struct {
	Type     string   `json:"type"`
	Enum     []string `json:"enum"`
	Required bool     `json:"required"`
	Min      *float64 `json:"min"`
	Max      *float64 `json:"max"`
	Since    int      `json:"since"`
	Until    int      `json:"until"`
}

func readDescription() (description, error) {
	var d description
	err := json.Unmarshal(apiJSON, &d)
	return d, err
}

// find returns the route of a request, and the name that is part of its path.
func (d description) find(method, path string) (route, string, error) {
	for _, r := range d.Routes {
		before, _, named := strings.Cut(r.Path, "{")
		if r.Method == method && (r.Path == path || named && strings.HasPrefix(path, before) && !strings.Contains(path[len(before):], "/")) {
			return r, path[len(before):], nil
		}
	}
	return route{}, "", fmt.Errorf("there is no %s %s", method, path)
}

// check refuses a body that is not of the named type, as version 1.minor has it.
func (d description) check(typeName string, minor int, body []byte) error {
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return fmt.Errorf("the body is not JSON: %w", err)
	}
	return d.checkObject(typeName, minor, value)
}

func (d description) checkObject(typeName string, minor int, value any) error {
	object, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("invalid type: expected struct %s", typeName)
	}
	fields, known := d.Types[typeName]
	if !known {
		return fmt.Errorf("api.json has no type %s", typeName)
	}
	for name, v := range object {
		f, ok := fields[name]
		if !ok || minor < f.Since || f.Until != 0 && minor > f.Until {
			return fmt.Errorf("unknown field `%s` in %s of version 1.%d", name, typeName, minor)
		}
		if err := d.checkValue(f, minor, v); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for name, f := range fields {
		if _, there := object[name]; f.Required && !there {
			return fmt.Errorf("missing field `%s` in %s", name, typeName)
		}
	}
	return nil
}

func (d description) checkValue(f field, minor int, v any) error {
	switch f.Type {
	case "string":
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("invalid type: expected a string")
		}
		if len(f.Enum) > 0 && !slices.Contains(f.Enum, s) {
			return fmt.Errorf("unknown variant `%s`", s)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("invalid type: expected a boolean")
		}
	case "integer":
		n, ok := v.(float64)
		if !ok || n != math.Trunc(n) {
			return fmt.Errorf("invalid type: expected an integer")
		}
		if f.Min != nil && n < *f.Min || f.Max != nil && n > *f.Max {
			return fmt.Errorf("%v is out of range", n)
		}
	default:
		inner, isList := strings.CutPrefix(f.Type, "list of ")
		if !isList {
			return d.checkObject(f.Type, minor, v)
		}
		list, ok := v.([]any)
		if !ok {
			return fmt.Errorf("invalid type: expected a list")
		}
		for _, v := range list {
			if err := d.checkObject(inner, minor, v); err != nil {
				return err
			}
		}
	}
	return nil
}
