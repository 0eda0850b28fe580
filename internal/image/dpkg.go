package image

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sporevm/spore/internal/image/rootfs"
)

// installed checks that the packages of a Debian system are those on a list
// as parseInstalls makes it.
func installed(tree *rootfs.Tree, want []string) error {
	const path = "var/lib/dpkg/status"
	r, err := tree.Open(path)
	if err != nil {
		return fmt.Errorf("looking at what was installed: %w", err)
	}
	have, err := parseStatus(r)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	// The list has an architecture only where it isn't the system's own.
	for _, w := range want {
		name, version, _ := strings.Cut(w, "=")
		base, _, _ := strings.Cut(name, ":")
		i := slices.Index(have, base+"="+version)
		if i < 0 {
			return &hintError{fmt.Errorf("the archive changed meanwhile: %s was not installed", w), "try again"}
		}
		have = slices.Delete(have, i, i+1)
	}
	if len(have) > 0 {
		return &hintError{fmt.Errorf("the archive changed meanwhile: %s was installed, too", have[0]), "try again"}
	}
	return nil
}

// parseStatus returns what dpkg's own list has as installed, "name=version".
func parseStatus(r io.Reader) ([]string, error) {
	var list []string
	var name, version string
	var ok bool
	flush := func() {
		if name != "" && ok {
			list = append(list, name+"="+version)
		}
		name, version, ok = "", "", false
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch field {
		case "":
			flush()
		case "Package":
			name = value
		case "Version":
			version = value
		case "Status":
			ok = strings.HasSuffix(value, " installed")
		}
	}
	flush()
	slices.Sort(list)
	return list, lines.Err()
}
