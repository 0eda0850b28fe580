package cli

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/snapshot"
)

// readSQL splits statements into what stands outside and what inside of literals, as PostgreSQL reads them.
func readSQL(t *rapid.T, text string) (code string, literals []string) {
	var out, literal strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\'' {
			out.WriteByte(text[i])
			continue
		}
		escapes := i > 0 && text[i-1] == 'E'
		literal.Reset()
		closed := false
		for i++; i < len(text) && !closed; i++ {
			switch {
			case text[i] == '\'' && i+1 < len(text) && text[i+1] == '\'':
				literal.WriteByte('\'')
				i++
			case text[i] == '\'':
				closed = true
				i--
			case text[i] == '\\' && escapes && i+1 < len(text):
				i++
				literal.WriteString(map[byte]string{'n': "\n", 'r': "\r", '\\': `\`, '\'': "'"}[text[i]])
			default:
				literal.WriteByte(text[i])
			}
		}
		if !closed {
			t.Fatalf("a literal does not end: %s", text)
		}
		literals = append(literals, literal.String())
		out.WriteString("''")
	}
	return strings.ReplaceAll(out.String(), "E''", "''"), literals
}

// TestSeed puts arbitrary text in every place: the statements stay the same, and the text comes back out of the literals.
func TestSeed(t *testing.T) {
	team := uuid.NewString()
	metadata := func(template, kernel string) *snapshot.Metadata {
		return &snapshot.Metadata{ID: uuid.New(), Labels: map[string]string{"template": template}, Kernel: snapshot.Kernel{Version: kernel}, VCPUs: 3, MemoryBytes: 5 << 20, DiskBytes: 7 << 20}
	}
	plain, err := seedFlags{team: team, envdVersion: "e", tag: "t"}.sql(metadata("x", "k"))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.SampledFrom([]rune("'\\\n\r;-E")), 1, 12, -1))
		template, kernel, agent, tag := "x"+text.Draw(rt, "template"), text.Draw(rt, "kernel"), "e"+text.Draw(rt, "agent"), text.Draw(rt, "tag")
		got, err := seedFlags{team: team, envdVersion: agent, tag: tag}.sql(metadata(template, kernel))
		if strings.ContainsRune(template+kernel+agent+tag, 0) {
			if err == nil {
				rt.Fatal("a zero byte passes")
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		want, _ := readSQL(rt, plain)
		code, literals := readSQL(rt, got)
		if code != want {
			rt.Fatalf("got %s\nwant %s", code, want)
		}
		all := strings.Join(literals, "\x00")
		for _, text := range []string{template, kernel, agent, tag} {
			if !strings.Contains(all, text) {
				rt.Fatalf("%q is not among %q", text, literals)
			}
		}
		for line := range strings.Lines(got) {
			if strings.HasPrefix(line, `\`) || strings.Count(got, "\n") != 5 {
				rt.Fatalf("psql reads a command: %s", got)
			}
		}
	})
	if _, err := (seedFlags{team: team, tag: "\xff"}).sql(metadata("x", "k")); err == nil {
		t.Error("what is not UTF-8 passes")
	}
}
