package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
		absent   []string
		fails    bool
	}{
		{
			name: "passing output is dropped",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}`,
			want: []string{"ok  \tp"}, absent: []string{"noise"},
		},
		{
			name: "a skip keeps its reason",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: no KVM here\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			want: []string{"SKIP\tp TestA: a_test.go:3: no KVM here"},
		},
		{
			name: "a failure prints what the test said",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"want 1, have 2\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"panic: boom\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`,
			want: []string{"want 1, have 2", "FAIL\tp", "panic: boom"}, fails: true,
		},
		{
			name: "a package that does not build fails",
			in: `{"ImportPath":"p","Action":"build-output","Output":"./a.go:1: undefined: x\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"fail","Package":"p"}`,
			want: []string{"undefined: x"}, fails: true,
		},
		{name: "what is not JSON is a failure", in: "go: errors parsing go.mod\n", want: []string{"errors parsing"}, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := report(strings.NewReader(c.in), &out)
			if (err != nil) != c.fails {
				t.Errorf("error %v, want failure: %v", err, c.fails)
			}
			for _, w := range c.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("missing %q in:\n%s", w, &out)
				}
			}
			for _, a := range c.absent {
				if strings.Contains(out.String(), a) {
					t.Errorf("unwanted %q in:\n%s", a, &out)
				}
			}
		})
	}
}
