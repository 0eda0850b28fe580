package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hostSources returns, as deb822 text, those of the host's apt sources that
// serve suite, its updates and its security fixes. A host that keeps a mirror,
// a proxy or a key of its own has said so there. Empty means that it has none,
// and mmdebstrap's defaults apply.
func hostSources(dir, suite string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	var stanzas []string
	for _, path := range append([]string{filepath.Join(dir, "sources.list")}, files...) {
		oneLine := strings.HasSuffix(path, ".list")
		if !oneLine && !strings.HasSuffix(path, ".sources") {
			continue
		}
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("reading the host's apt sources: %w", err)
		}
		parse := stanzaSources
		if oneLine {
			parse = lineSources
		}
		for _, s := range parse(string(text)) {
			if s.pick(suite) {
				stanzas = append(stanzas, s.String())
			}
		}
	}
	// Updates alone make no system.
	main := slices.ContainsFunc(stanzas, func(s string) bool {
		for line := range strings.Lines(s) {
			if list, ok := strings.CutPrefix(line, "Suites: "); ok && slices.Contains(strings.Fields(list), suite) {
				return true
			}
		}
		return false
	})
	if !main {
		return "", nil
	}
	return strings.Join(stanzas, "\n"), nil
}

// aptSource is one stanza: the fields that are handed on, by lower-case name.
type aptSource map[string]string

// aptFields are the fields handed on, in the order in which they are written.
var aptFields = []string{"Types", "URIs", "Suites", "Components", "Signed-By", "Trusted"}

// pick narrows a source to what belongs to suite, and reports whether
// anything is left.
func (s aptSource) pick(suite string) bool {
	if strings.EqualFold(s["enabled"], "no") || !slices.Contains(strings.Fields(s["types"]), "deb") {
		return false
	}
	if strings.HasPrefix(s["signed-by"], "\n") {
		// A key in the text itself; mmdebstrap copies only files.
		return false
	}
	var keep []string
	for _, have := range strings.Fields(s["suites"]) {
		base, _, _ := strings.Cut(have, "/")
		if base == suite || base == suite+"-updates" || base == suite+"-security" {
			keep = append(keep, have)
		}
	}
	s["types"] = "deb"
	s["suites"] = strings.Join(keep, " ")
	// A distribution's own archive has a part called main; others' would not
	// make a system.
	return len(keep) > 0 && s["uris"] != "" && slices.Contains(strings.Fields(s["components"]), "main")
}

func (s aptSource) String() string {
	var b strings.Builder
	for _, field := range aptFields {
		if v := s[strings.ToLower(field)]; v != "" {
			fmt.Fprintf(&b, "%s: %s\n", field, v)
		}
	}
	return b.String()
}

// stanzaSources parses the deb822 style: fields, with stanzas set apart by
// blank lines.
func stanzaSources(text string) []aptSource {
	var list []aptSource
	cur, field := aptSource{}, ""
	flush := func() {
		if len(cur) > 0 {
			list = append(list, cur)
		}
		cur, field = aptSource{}, ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if field != "" {
				cur[field] += "\n" + line
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			field = strings.ToLower(name)
			cur[field] = strings.TrimSpace(value)
		}
	}
	flush()
	return list
}

// lineSources parses the older style: "deb [option=value …] uri suite component …".
func lineSources(text string) []aptSource {
	var list []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		s := aptSource{"types": "deb"}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for option := range strings.FieldsSeq(options) {
				name, value, _ := strings.Cut(option, "=")
				s[strings.ToLower(name)] = value
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		s["uris"], s["suites"], s["components"] = f[0], f[1], strings.Join(f[2:], " ")
		list = append(list, s)
	}
	return list
}
