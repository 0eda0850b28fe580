package house

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

var (
	link     = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.+)$`)
	quoted   = regexp.MustCompile("`([^`]+)`")
	sentence = regexp.MustCompile(`[^a-z0-9 -]`)
)

// anchors are the names of a page's headings, as links call them.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		all["#"+strings.ReplaceAll(sentence.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

// TestLinks follows the links of the documents that lead to other files and to headings.
func TestLinks(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	followed := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			followed++
			to := page
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(page), m[1])
			}
			there, err := os.ReadFile(to)
			if err != nil || m[2] != "" && !anchors(string(there))[m[2]] {
				t.Errorf("%s leads to %s%s, which is not there", page, m[1], m[2])
			}
		}
	}
	if followed < 10 {
		t.Errorf("only %d links were found in %v", followed, pages)
	}
}

// TestRoomsAndFilesAreNamed holds ARCHITECTURE.md against the tree: it names every room, and the files and folders that it names are there.
func TestRoomsAndFilesAreNamed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range floors {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("ARCHITECTURE.md does not name %s", name)
		}
	}
	files := 0
	for line := range strings.Lines(string(text)) {
		folder := ""
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			name := m[1]
			switch top, _, _ := strings.Cut(name, "/"); {
			case top == "internal" || top == "cmd" || top == "test":
				if folder = name; path.Ext(name) == ".go" {
					folder = path.Dir(name)
				}
			case folder != "" && path.Ext(name) == ".go":
				name = path.Join(folder, name) // beside the file that was named before it
			default:
				continue
			}
			files++
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Errorf("ARCHITECTURE.md names %s: %v", name, err)
			}
		}
	}
	if files < 40 {
		t.Errorf("only %d files and folders were found", files)
	}
}
