// Command testreport reads `go test -json` and prints what a person wants to read: one line a package, the full output of what failed,
// and one line with the reason for each test that was skipped, which plain `go test` hides.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
}

type key struct{ pkg, test string }

// report copies a digest of the events in r to w. It returns an error if any package failed, or if the stream is not what it should be.
func report(r io.Reader, w io.Writer) error {
	output := map[key]*strings.Builder{}
	var skips []string
	failed := 0
	lines := bufio.NewReader(r)
	for {
		line, readErr := lines.ReadString('\n')
		if strings.TrimSpace(line) != "" {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				fmt.Fprint(w, line) // the go command's own words, such as those on a broken go.mod
				failed++
			} else if e.apply(w, output, &skips) {
				failed++
			}
		}
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return fmt.Errorf("reading events: %w", readErr)
		}
	}
	for _, s := range skips {
		fmt.Fprintln(w, s)
	}
	if failed > 0 {
		return fmt.Errorf("%d failures", failed)
	}
	return nil
}

// apply takes one event in and reports whether it says that a package failed.
func (e event) apply(w io.Writer, output map[key]*strings.Builder, skips *[]string) bool {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		if e.Test == "" {
			// Package lines go out at once: they are the progress of a long run.
			if strings.HasPrefix(e.Output, "ok") || strings.HasPrefix(e.Output, "FAIL\t") || strings.HasPrefix(e.Output, "?") {
				fmt.Fprint(w, e.Output)
				return false
			}
		}
		if output[k] == nil {
			output[k] = &strings.Builder{}
		}
		output[k].WriteString(e.Output)
	case "build-output":
		fmt.Fprint(w, e.Output)
	case "fail":
		if b := output[k]; b != nil {
			fmt.Fprint(w, b.String())
		}
		return e.Test == ""
	case "skip":
		if e.Test != "" {
			*skips = append(*skips, fmt.Sprintf("SKIP\t%s %s: %s", e.Package, e.Test, reason(output[k])))
		}
		delete(output, k)
	case "pass":
		delete(output, k)
	}
	return false
}

// reason picks the words of t.Skip out of a test's output.
func reason(b *strings.Builder) string {
	if b == nil {
		return "no reason given"
	}
	var words []string
	for _, line := range strings.Split(b.String(), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		words = append(words, line)
	}
	if len(words) == 0 {
		return "no reason given"
	}
	return strings.Join(words, " ")
}
