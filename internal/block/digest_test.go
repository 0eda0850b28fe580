package block_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/block"
)

// The test vector of BLAKE3's own specification for no input.
const emptyDigest = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

func TestDigestText(t *testing.T) {
	if got := block.Sum(nil).String(); got != emptyDigest {
		t.Errorf("the digest of nothing is %s, want %s", got, emptyDigest)
	}
	type record struct {
		D    block.Digest `json:"d"`
		None block.Digest `json:"none,omitzero"`
	}
	encoded, err := json.Marshal(record{D: block.Sum(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"d":"` + emptyDigest + `"}`; string(encoded) != want {
		t.Errorf("JSON is %s, want %s", encoded, want)
	}
	var back record
	if err := json.Unmarshal(encoded, &back); err != nil {
		t.Fatal(err)
	}
	if back.D != block.Sum(nil) {
		t.Errorf("it comes back as %s", back.D)
	}
}

func TestParseDigestRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":         "",
		"prefix only":     "blake3:",
		"other algorithm": strings.Replace(emptyDigest, "blake3", "sha256", 1),
		"no prefix":       strings.TrimPrefix(emptyDigest, "blake3:"),
		"short":           emptyDigest[:len(emptyDigest)-1],
		"long":            emptyDigest + "0",
		"upper case":      "blake3:" + strings.ToUpper(emptyDigest[7:]),
		"no digit":        emptyDigest[:len(emptyDigest)-1] + "g",
		"space":           emptyDigest + " ",
	} {
		if d, err := block.ParseDigest(s); err == nil {
			t.Errorf("%s: %q parses as %s", name, s, d)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(emptyDigest)
	f.Add("blake3:")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := block.ParseDigest(s); err == nil && d.String() != s {
			t.Errorf("%q comes back as %q", s, d)
		}
	})
}
