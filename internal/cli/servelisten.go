package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore/internal/sandboxapi"
)

// listen serves until ctx ends: the API on its address and on the unix socket, and what is private on an address of its own.
func (a *app) listen(ctx context.Context, f serveFlags, api http.Handler, registry *prometheus.Registry, log *slog.Logger) error {
	public, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening for requests: %w", err)
	}
	defer public.Close()
	socket, err := a.listenSocket()
	if err != nil {
		return err
	}
	defer socket.Close() // removes it
	listeners := []net.Listener{public, socket}
	servers := []*http.Server{sandboxapi.NewHTTPServer(api, httpLog(log))}
	var private net.Listener
	if f.metrics != "" {
		if private, err = net.Listen("tcp", f.metrics); err != nil {
			return fmt.Errorf("listening for --metrics-listen: %w", err)
		}
		defer private.Close()
		servers = append(servers, &http.Server{Handler: privateRoutes(registry), ReadHeaderTimeout: 10 * time.Second, ErrorLog: httpLog(log)})
	}
	a.say("serving http://%s", public.Addr())
	if private != nil {
		a.say("metrics and profiles on http://%s", private.Addr())
	}
	g, stopped := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return served(servers[0].Serve(l)) })
	}
	if private != nil {
		g.Go(func() error { return served(servers[1].Serve(private)) })
	}
	g.Go(func() error {
		<-stopped.Done()
		// Requests that are quick may end; streams are cut, for their sandboxes are about to be.
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		for _, s := range servers {
			if s.Shutdown(short) != nil {
				s.Close()
			}
		}
		return nil
	})
	return g.Wait()
}

// served is nil for a server that was told to end.
func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func httpLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

// privateRoutes are what only the operator may see.
func privateRoutes(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// listenSocket listens for the other commands. A socket that a dead daemon left is replaced; the lock on the state has told that there is no other.
func (a *app) listenSocket() (net.Listener, error) {
	path, err := a.socket()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making room for the daemon's socket: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another daemon listens on %s: choose another socket by --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing a dead daemon's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for the other commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("keeping others from the daemon's socket: %w", err), l.Close())
	}
	return l, nil
}
