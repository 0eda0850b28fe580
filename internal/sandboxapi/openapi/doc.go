// Package openapi is the document of the sandbox API, openapi.yaml, and what follows from it: the types and the router in server.gen.go, and the check of
// requests before anything else looks at them.
package openapi

import (
	_ "embed"
	"encoding/json"
	"fmt"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:generate go tool oapi-codegen -config oapi-codegen.yaml -o server.gen.go openapi.yaml

//go:embed openapi.yaml
var source []byte

// Document is the document, parsed and checked.
type Document struct {
	spec *openapi3.T
	json []byte
	ops  map[string]*operation // by "METHOD /path/{of}/route", as net/http's router names it
}

// operation is one method of one path.
type operation struct {
	path   string
	method string
	item   *openapi3.PathItem
	op     *openapi3.Operation
}

// Load parses the document. An error is a fault of the build.
func Load() (*Document, error) {
	spec, err := openapi3.NewLoader().LoadFromData(source)
	if err != nil {
		return nil, fmt.Errorf("reading the API's document: %w", err)
	}
	d := &Document{spec: spec, ops: map[string]*operation{}}
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			d.ops[method+" "+path] = &operation{path: path, method: method, item: item, op: op}
		}
	}
	if d.json, err = json.Marshal(spec); err != nil {
		return nil, fmt.Errorf("writing the API's document as JSON: %w", err)
	}
	return d, nil
}

// JSON is the document as it is served. Do not change it.
func (d *Document) JSON() []byte { return d.json }

// Spec is the document's tree. Do not change it.
func (d *Document) Spec() *openapi3.T { return d.spec }

// Public tells whether the route of this pattern needs no key.
func (d *Document) Public(pattern string) bool {
	o := d.ops[pattern]
	return o != nil && o.op.Security != nil && len(*o.op.Security) == 0
}
