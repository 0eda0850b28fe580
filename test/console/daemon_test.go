package console

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/console"
	"github.com/sporevm/spore/internal/sandbox/sandboxtest"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// TestAgainstDaemon has the browser make, use, freeze, wake, fork, compare and kill real machines, through all that a daemon consists of.
func TestAgainstDaemon(t *testing.T) {
	lab, err := sandboxtest.New(t.Context())
	if err != nil {
		t.Fatalf("preparing the tests: %v", err)
	}
	defer lab.Close()
	run, err := os.MkdirTemp("", "spore-run") // short: sockets are made in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	host, err := lab.Host(run, log)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Open(t.Context(), fleet.Options{Host: host, StateDir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(context.Background(), fleet.Kill); err != nil {
			t.Errorf("closing the fleet: %v", err)
		}
	}()
	_, secret, err := f.Keys().Create(t.Context(), "browser")
	if err != nil {
		t.Fatal(err)
	}
	check := func(ctx context.Context, secret string) (string, error) {
		key, err := f.Keys().Check(ctx, secret)
		return key.ID, err
	}
	api, err := sandboxapi.New(sandboxapi.Options{
		Sandboxes: f, Snapshots: host.Snapshots, Check: check, Keys: sandboxapi.KeysAlways, Console: console.Handler(), Log: log,
		Host: sandboxapi.Host{Version: "test", Arch: "amd64", Engine: "qemu", Accel: "tcg"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	server := httptest.NewUnstartedServer(nil)
	server.Config = sandboxapi.NewHTTPServer(api, nil)
	server.Start()
	defer server.Close()
	browser(t, "daemon.mjs", "URL="+server.URL, "KEY="+secret, "TEMPLATE="+sandboxtest.Name)
}
