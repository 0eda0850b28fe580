package openapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// Check holds a request that the router has matched against the document. It reads the body, of which the caller has bounded the length, and puts it back.
// The error is for the client; it wraps that of the body's reader.
func (d *Document) Check(r *http.Request) error {
	o := d.ops[r.Pattern]
	if o == nil {
		return fmt.Errorf("%s is not in the document", r.Pattern)
	}
	params := map[string]string{}
	for rest := o.path; ; {
		_, after, ok := strings.Cut(rest, "{")
		if !ok {
			break
		}
		name, after, _ := strings.Cut(after, "}")
		params[name], rest = r.PathValue(name), after
	}
	err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request:    r,
		PathParams: params,
		Route:      &routers.Route{Spec: d.spec, Path: o.path, PathItem: o.item, Method: o.method, Operation: o.op},
		Options: &openapi3filter.Options{
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc, // was done before
			SkipSettingDefaults: true,
		},
	})
	if err == nil {
		return nil
	}
	return &RequestError{words(err), err}
}

// RequestError says what about a request is not as the document has it.
type RequestError struct {
	message string
	err     error
}

func (e *RequestError) Error() string { return e.message }

func (e *RequestError) Unwrap() error { return e.err }

// words says in one line what is wrong: the validator's own errors repeat schema and value at length, and values may be secret.
func words(err error) string {
	where, what := "the request", ""
	if e := (*openapi3filter.RequestError)(nil); errors.As(err, &e) {
		switch {
		case e.Parameter != nil:
			where = fmt.Sprintf("%s parameter %q", e.Parameter.In, e.Parameter.Name)
		case e.RequestBody != nil:
			where = "the body"
		}
		what = e.Reason
	}
	if e := (*openapi3.SchemaError)(nil); errors.As(err, &e) {
		if p := e.JSONPointer(); len(p) > 0 {
			where += ", " + strings.Join(p, ".")
		}
		what = e.Reason
	} else if e := (*openapi3filter.ParseError)(nil); errors.As(err, &e) {
		if what = e.Reason; what == "" && e.Cause != nil {
			what = e.Cause.Error()
		}
	}
	if what == "" {
		what = "it is malformed"
	}
	if len(what) > 300 {
		what = what[:300] + "…"
	}
	return where + ": " + strings.ToValidUTF8(what, "\ufffd")
}
