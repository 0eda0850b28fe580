package openapi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestServerIsOfTheDocument fails when openapi.yaml was changed without `go generate`.
func TestServerIsOfTheDocument(t *testing.T) {
	fresh := filepath.Join(t.TempDir(), "server.gen.go")
	out, err := exec.Command("go", "tool", "oapi-codegen", "-config", "oapi-codegen.yaml", "-o", fresh, "openapi.yaml").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(fresh)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("server.gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("server.gen.go is not what openapi.yaml makes: run go generate ./internal/sandboxapi/openapi")
	}
}
