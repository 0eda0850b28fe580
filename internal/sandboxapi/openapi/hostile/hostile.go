// Package hostile makes requests out of the API's document, for tests that no request makes a server stumble: some are as they should be, in most something is
// not.
package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// Generator makes requests. It is not for concurrent use.
type Generator struct {
	spec *openapi3.T
	rand *rand.Rand
	// Known holds values for parameters and properties, by name: ids of sandboxes that are there, say. A value is drawn from them half of the time.
	Known map[string][]string
	// Leave out these operations, by id.
	Leave []string
}

// New returns a generator that draws alike for one seed.
func New(spec *openapi3.T, seed uint64) *Generator {
	return &Generator{spec: spec, rand: rand.New(rand.NewPCG(seed, seed)), Known: map[string][]string{}}
}

// Request makes a request to the server at base. The operation is the one that it is made from.
func (g *Generator) Request(base string) (*http.Request, *openapi3.Operation) {
	for {
		paths := g.spec.Paths.Map()
		path := pick(g.rand, slices.Sorted(maps.Keys(paths)))
		operations := paths[path].Operations()
		method := pick(g.rand, slices.Sorted(maps.Keys(operations)))
		op := operations[method]
		if slices.Contains(g.Leave, op.OperationID) {
			continue
		}
		query := url.Values{}
		for _, p := range slices.Concat(paths[path].Parameters, op.Parameters) {
			p := p.Value
			switch p.In {
			case openapi3.ParameterInPath:
				path = strings.Replace(path, "{"+p.Name+"}", url.PathEscape(g.text(p.Name, p.Schema.Value)), 1)
			case openapi3.ParameterInQuery:
				for range g.often(p.Required) {
					query.Add(p.Name, g.text(p.Name, p.Schema.Value))
				}
			}
		}
		var body []byte
		kind := "application/json"
		if op.RequestBody != nil {
			body = g.body(op.RequestBody.Value)
		}
		if g.one(20) {
			kind = pick(g.rand, []string{"", "text/plain", "application/json; charset=\x7f", "multipart/form-data; boundary=", "application/x-www-form-urlencoded"})
		}
		if g.one(30) {
			method = pick(g.rand, []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"})
		}
		target := base + path
		if raw := query.Encode(); g.one(30) {
			target += "?" + strings.ReplaceAll(raw, "=", "%") + "&;=&%zz"
		} else {
			target += "?" + raw
		}
		req, err := http.NewRequest(method, target, bytes.NewReader(body))
		if err != nil {
			continue // not even a client would send that
		}
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		return req, op
	}
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// one is true once in n times.
func (g *Generator) one(n int) bool { return g.rand.IntN(n) == 0 }

// often is how many times a parameter is there: mostly once if it must be, mostly not if it need not.
func (g *Generator) often(required bool) int {
	switch n := g.rand.IntN(20); {
	case n == 0:
		return 2
	case n == 1:
		return 0
	case n < 8 || required:
		return 1
	}
	return 0
}

// nasty are words that have made servers stumble.
var nasty = []string{
	"", " ", ".", "..", "../../etc/passwd", "%2e%2e%2f", "\x00", "a\x00b", "\r\nX-Injected: 1", "'; drop table sandboxes; --", "-1", "0", "1e309", "NaN", "null", "true", "[]", "{}",
	"99999999999999999999", "9223372036854775807", "-9223372036854775808", "0x10", "\u202e\ufeff", "\xff\xfe", "日本語", "a b", "a/b", "a%2Fb", "a:b", "@", "*", "${HOME}", "$(id)",
	"0001-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "2026-02-30T00:00:00Z", "00000000-0000-0000-0000-000000000000", "ffffffffffffffffffffffffffffffff", strings.Repeat("A", 5000),
	strings.Repeat("0", 64), "key=value&key=%zz", "=&=&=",
}

// text is a parameter's value.
func (g *Generator) text(name string, s *openapi3.Schema) string {
	if g.one(4) {
		return pick(g.rand, nasty)
	}
	switch v := g.value(name, s, 0).(type) {
	case string:
		return v
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, fmt.Sprint(e))
		}
		return strings.Join(parts, ",")
	default:
		return fmt.Sprint(v)
	}
}

// body is a request's body: mostly one that the document allows.
func (g *Generator) body(b *openapi3.RequestBody) []byte {
	if g.one(10) {
		return nil
	}
	data, err := json.Marshal(g.value("", b.Content.Get("application/json").Schema.Value, 0))
	if err != nil {
		data = []byte("null")
	}
	switch g.rand.IntN(30) {
	case 0:
		return bytes.Repeat([]byte("["), 100_000) // deep
	case 1:
		return append(bytes.Repeat([]byte(" "), 2<<20), data...) // long
	case 2:
		return data[:len(data)/2]
	case 3:
		return append(data, data...)
	case 4, 5:
		if len(data) > 0 {
			data[g.rand.IntN(len(data))] ^= byte(1 << g.rand.IntN(8))
		}
	case 6:
		return []byte(`{"templateID":{"templateID":[]},"timeout":1e400}`)
	}
	return data
}

// value is a value that the schema allows, or now and then one that it does not.
func (g *Generator) value(name string, s *openapi3.Schema, depth int) any {
	if g.one(25) || depth > 6 {
		return pick(g.rand, []any{nil, true, -1, 1.5, 1 << 53, "", []any{}, map[string]any{}, pick(g.rand, nasty)})
	}
	if known := g.Known[name]; len(known) > 0 && s.Type.Is("string") && !g.one(4) {
		return pick(g.rand, known)
	}
	if len(s.Enum) > 0 {
		return pick(g.rand, s.Enum)
	}
	switch {
	case s.Type.Is("boolean"):
		return g.one(2)
	case s.Type.Is("integer"), s.Type.Is("number"):
		low, high := int64(0), int64(1<<31)
		if s.Min != nil {
			low = int64(*s.Min)
		}
		if s.Max != nil {
			high = int64(*s.Max)
		}
		return pick(g.rand, []int64{low, low + 1, high, high - 1, low + g.rand.Int64N(min(high-low, 100)+1), low - 1, high + 1})
	case s.Type.Is("array"):
		list := []any{}
		for range g.rand.IntN(4) {
			list = append(list, g.value(name, s.Items.Value, depth+1))
		}
		return list
	case s.Type.Is("object"):
		object := map[string]any{}
		for _, property := range slices.Sorted(maps.Keys(s.Properties)) {
			for range min(1, g.often(slices.Contains(s.Required, property))) {
				object[property] = g.value(property, s.Properties[property].Value, depth+1)
			}
		}
		if more := s.AdditionalProperties.Schema; more != nil {
			for range g.rand.IntN(4) {
				object[pick(g.rand, nasty)] = g.value("", more.Value, depth+1)
			}
		}
		return object
	case s.Format == "date-time":
		return pick(g.rand, []string{"2026-01-02T03:04:05Z", "1969-12-31T23:59:59.999999999+14:00", "2026-01-02", "9999-12-31T23:59:59Z"})
	}
	return strings.Repeat("x", g.rand.IntN(20)+1)
}
