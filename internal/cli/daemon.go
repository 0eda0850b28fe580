package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandboxapi/client"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// socketName is the daemon's socket in the run folder.
const socketName = "daemon.sock"

// noDaemon says that there is no daemon to speak to.
type noDaemon struct{ socket string }

func (e *noDaemon) Error() string { return "no daemon listens on " + e.socket }

// Hint says what to do about it.
func (e *noDaemon) Hint() string {
	return "start one by `spore serve`, or name another by --socket or SPORE_URL; run and resume work without one, but for --detach"
}

// stateDir is the folder of the daemon's state.
func (a *app) stateDir() (string, error) {
	data, err := a.home("XDG_DATA_HOME", ".local/share")
	if err != nil && a.statePath == "" && a.Getenv("SPORE_STATE") == "" {
		return "", err
	}
	return filepath.Abs(first(a.statePath, a.Getenv("SPORE_STATE"), filepath.Join(data, "daemon")))
}

// socket is the path of the daemon's unix socket.
func (a *app) socket() (string, error) {
	path, err := filepath.Abs(first(a.socketPath, a.Getenv("SPORE_SOCKET"), filepath.Join(a.runDir(), socketName)))
	if err == nil && len(path) > 107 {
		err = usageErrorf("the path of the daemon's socket is %d bytes long, of at most 107: %s", len(path), path)
	}
	return path, err
}

// daemonFlags declares where the daemon is, for the commands that speak to one.
func (a *app) daemonFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.socketPath, "socket", "", "the daemon's unix socket (default $SPORE_SOCKET, or daemon.sock in the run folder)")
}

// daemon returns a client of the daemon of this host, or of the one that SPORE_URL names. The error is a *noDaemon if there is none.
func (a *app) daemon(ctx context.Context) (*client.Client, error) {
	if url := a.Getenv("SPORE_URL"); url != "" && a.socketPath == "" {
		return client.New(url, a.Getenv("SPORE_API_KEY"))
	}
	return a.localDaemon(ctx)
}

// localDaemon returns a client of the daemon of this host. The error is a *noDaemon if there is none.
func (a *app) localDaemon(ctx context.Context) (*client.Client, error) {
	path, err := a.socket()
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, &noDaemon{path}
	}
	return c, err
}

// onSandbox finds the daemon, and in it the sandbox whose id begins with ref.
func (a *app) onSandbox(ctx context.Context, ref string) (*client.Client, string, error) {
	c, failed := a.daemon(ctx)
	id, err := a.find(ctx, c, failed, ref)
	return c, id, err
}

// completeSandboxes offers the daemon's sandboxes to the shell.
func (a *app) completeSandboxes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.daemon(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := c.List(cmd.Context()) // none is offered if they can't be had
	var out []string
	for _, s := range all {
		out = append(out, s.SandboxID+"\t"+first(s.Alias, s.TemplateID))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// far is a sandbox of a daemon as something to run commands in.
type far struct {
	client *client.Client
	id     string
	agent  *guest.Client
}

func farSandbox(c *client.Client, s openapi.Sandbox) far { return far{c, s.SandboxID, c.Agent(s)} }

// asleep says that a sandbox was paused under a command. The command goes on when it wakes.
type asleep struct{ id string }

func (e *asleep) Error() string { return "sandbox " + e.id + " was paused" }

// Hint says what to do about it.
func (e *asleep) Hint() string { return "the command goes on in it when it wakes: spore wake " + e.id }

// explain implements explainer: it prefers what became of the sandbox over the end of a stream from it.
func (f far) explain(ctx context.Context, err error) error {
	now, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	// A sandbox that is being paused loses its streams first. This waits until it is, and changes nothing of one that runs.
	failed := f.client.Refresh(now, f.id, time.Second)
	switch {
	case answered(failed, http.StatusConflict):
		return &asleep{f.id}
	case is[*client.Error](failed):
		return failed
	}
	return err
}

// explainTimeout is how long an error may wait for a better one.
const explainTimeout = 10 * time.Second

// Agent implements attachable.
func (f far) Agent() *guest.Client { return f.agent }

// Done implements attachable: the end of a daemon's sandbox shows as the end of what is asked of it.
func (f far) Done() <-chan struct{} { return nil }

// Err implements attachable.
func (f far) Err() error { return nil }

// daemonLog is the log of a daemon: what it does is worth reading, unlike the log of a command.
func (a *app) daemonLog(format string) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if a.verbose {
		o.Level = slog.LevelDebug
	}
	if a.quiet {
		o.Level = slog.LevelWarn
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(a.Err, o))
	}
	return slog.New(slog.NewTextHandler(a.Err, o))
}

// tracer returns where spans go, and what has them all written, or says that they were lost. Without an endpoint in the environment they go nowhere.
func (a *app) tracer(ctx context.Context) (trace.Tracer, func(), error) {
	if a.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && a.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return noop.NewTracerProvider().Tracer(""), func() {}, nil
	}
	exporter, err := otlptracehttp.New(ctx) // reads the environment
	if err != nil {
		return nil, nil, fmt.Errorf("exporting traces: %w", err)
	}
	about := resource.NewSchemaless(semconv.ServiceName("spore"), semconv.ServiceVersion(a.version))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return provider.Tracer("github.com/sporevm/spore"), func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := provider.Shutdown(last); err != nil { // no reason for a daemon that did its work to fail
			fmt.Fprintf(a.Err, "spore: traces were lost: %v\n", err)
		}
	}, nil
}
