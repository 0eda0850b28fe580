package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/console"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/sandboxapi"
	"github.com/sporevm/spore/internal/sandboxapi/builds"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/vmm"
)

// serveFlags are what serve takes.
type serveFlags struct {
	listen, metrics  string
	pools, warmups   []string
	keys             string
	origins          []string
	domain           string
	buildNet         string
	onExit           string
	exitTimeout      time.Duration
	timeout, longest time.Duration
	running, paused  int
	reserve          string
	logFormat        string
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: sandboxes as a service",
		Long: `Runs the daemon that owns sandboxes: it makes them from snapshots, forks them, lets them sleep and wake, and ends them when their time is up. It answers
the public API of the E2B sandbox platform, so that its SDKs work with E2B_API_URL and E2B_SANDBOX_URL set to http://ADDRESS, and the web console at /.
The commands ps, exec, fork, pause, wake, kill, logs and port-forward speak to it over a unix socket; run and resume have their machines in it, if it has the
snapshot.

Whoever reaches the address needs a key (spore key create), but on loopback: there any string passes for one, unless --keys always says otherwise.

A --pool NAME=N keeps N sandboxes of a template waiting: restored, exercised once and stopped, so that making one is a matter of milliseconds.

On SIGINT and SIGTERM running sandboxes are paused, or killed with --on-exit kill. A second signal ends the daemon at once. What it was not told to keep is
gone then; what slept is still there at the next start.

With --jail all sandboxes run in Firecracker's jailer, and those of snapshots that QEMU has frozen are refused; templates are built on Firecracker then.

Traces go where OTEL_EXPORTER_OTLP_ENDPOINT says, if it is set.`,
		Example: `  spore serve
  spore serve --listen 0.0.0.0:7070 --pool py=8 --pool-warmup 'py=python3 -c pass'
  E2B_API_URL=http://127.0.0.1:7070 E2B_SANDBOX_URL=http://127.0.0.1:7070 E2B_API_KEY=any node program.js`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.listen, "listen", "127.0.0.1:7070", "`ADDRESS` of the API and the console")
	flags.StringVar(&a.statePath, "state", "", "folder of the daemon's state (default $SPORE_STATE, or spore/daemon in the user's data folder)")
	flags.StringVar(&a.socketPath, "socket", "", "unix socket for the other commands (default $SPORE_SOCKET, or daemon.sock in the run folder)")
	flags.StringVar(&f.keys, "keys", "remote", "who needs a key: remote (all but loopback), always or never")
	flags.StringArrayVar(&f.pools, "pool", nil, "keep N sandboxes of a template waiting, as `TEMPLATE=N`; may be repeated")
	flags.StringArrayVar(&f.warmups, "pool-warmup", nil, "what each of them runs before it waits, as `TEMPLATE=COMMAND`; may be repeated")
	flags.DurationVar(&f.timeout, "default-timeout", 5*time.Minute, "life of a sandbox that asks for no timeout")
	flags.DurationVar(&f.longest, "max-timeout", 24*time.Hour, "longest life that one may ask for at once")
	flags.IntVar(&f.running, "max-running", 0, "running sandboxes that a key may have; 0: no limit but the host's")
	flags.IntVar(&f.paused, "max-paused", 0, "paused sandboxes that a key may have; 0: no limit")
	flags.StringVar(&f.reserve, "reserve-memory", "", "host memory to leave alone, a `SIZE` such as 2G (default a sixteenth)")
	flags.StringVar(&f.onExit, "on-exit", "pause", "what happens to running sandboxes when the daemon ends: pause or kill")
	flags.DurationVar(&f.exitTimeout, "exit-timeout", 5*time.Minute, "how long pausing them may take; what is left then is killed")
	flags.StringVar(&f.domain, "domain", "", "name under which the ports of sandboxes are found, as PORT-ID.NAME (default the name of each request)")
	flags.StringArrayVar(&f.origins, "origin", nil, "`ORIGIN` of web pages that may use the API without a key; may be repeated")
	flags.StringVar(&f.buildNet, "build-net", "none", "network of the templates that clients build: none, user or tap")
	flags.StringVar(&f.metrics, "metrics-listen", "", "`ADDRESS` for /metrics and /debug/pprof, which need no key: keep it private")
	flags.StringVar(&f.logFormat, "log-format", "text", "text or json")
	a.jailFlags(flags)
	a.trustFlags(flags)
	return c
}

// check refuses what can't be meant.
func (f *serveFlags) check() (o fleet.Options, keys sandboxapi.KeyPolicy, err error) {
	policies := map[string]sandboxapi.KeyPolicy{"remote": sandboxapi.KeysBeyondLoopback, "always": sandboxapi.KeysAlways, "never": sandboxapi.KeysNever}
	keys, ok := policies[f.keys]
	if !ok {
		return o, keys, usageErrorf("--keys %q: choose remote, always or never", f.keys)
	}
	if f.onExit != string(fleet.Pause) && f.onExit != string(fleet.Kill) {
		return o, keys, usageErrorf("--on-exit %q: choose pause or kill", f.onExit)
	}
	if f.logFormat != "text" && f.logFormat != "json" {
		return o, keys, usageErrorf("--log-format %q: choose text or json", f.logFormat)
	}
	if f.timeout <= 0 || f.longest < f.timeout {
		return o, keys, usageErrorf("--default-timeout %v and --max-timeout %v: choose more than nothing, and the second no less than the first", f.timeout, f.longest)
	}
	if _, err := vmm.ParseNetwork(f.buildNet); err != nil {
		return o, keys, usageErrorf("--build-net: %v", err)
	}
	if f.running < 0 || f.paused < 0 {
		return o, keys, usageErrorf("--max-running and --max-paused can't be negative")
	}
	o = fleet.Options{DefaultTimeout: f.timeout, MaxTimeout: f.longest, MaxRunning: f.running, MaxPaused: f.paused, Pools: map[string]fleet.PoolSpec{}}
	if f.reserve != "" {
		if o.ReserveMemory, err = parseSize(f.reserve); err != nil {
			return o, keys, usageErrorf("--reserve-memory: %v", err)
		}
	}
	for _, p := range f.pools {
		name, number, ok := cutLast(p, "=")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 1 || n > 1000 {
			return o, keys, usageErrorf("--pool %q: it is TEMPLATE=N, with N from 1 to 1000", p)
		}
		o.Pools[name] = fleet.PoolSpec{Size: n}
	}
	for _, w := range f.warmups {
		name, command, ok := strings.Cut(w, "=")
		spec, pooled := o.Pools[name]
		if !ok || !pooled {
			return o, keys, usageErrorf("--pool-warmup %q: it is TEMPLATE=COMMAND, of a template that has a --pool", w)
		}
		spec.Warmup = command
		o.Pools[name] = spec
	}
	return o, keys, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (a *app) serve(ctx context.Context, f serveFlags) (err error) {
	o, keys, err := f.check()
	if err != nil {
		return err
	}
	log := a.daemonLog(f.logFormat)
	host, err := a.hostWith(ctx, log)
	if err != nil {
		return err
	}
	host.Daemon = true
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	tracer, flush, err := a.tracer(ctx)
	if err != nil {
		return err
	}
	defer flush()
	if o.StateDir, err = a.stateDir(); err != nil {
		return err
	}
	o.Host, o.Log, o.Metrics, o.Tracer = host, log, registry, tracer
	sandboxes, err := fleet.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		// The signal that ended us is no reason to leave work half done; a second one ends the process.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.exitTimeout)
		defer cancel()
		err = errors.Join(err, sandboxes.Close(ending, fleet.Action(f.onExit)))
	}()
	info, err := a.describeDaemon(ctx, host, o)
	if err != nil {
		return err
	}
	templates, err := builds.New(builds.Options{Host: host, Dir: filepath.Join(o.StateDir, "builds"), Engine: a.onlyEngine(), Net: f.buildNet, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, templates.Close()) }()
	api, err := sandboxapi.New(sandboxapi.Options{
		Sandboxes: sandboxes, Snapshots: host.Snapshots, Builds: templates, Keys: keys, Origins: f.origins, Domain: f.domain, Host: info,
		Check: func(ctx context.Context, secret string) (string, error) {
			key, err := sandboxes.Keys().Check(ctx, secret)
			return key.ID, err
		},
		Console: console.Handler(), Log: log, Metrics: registry, Tracer: tracer,
	})
	if err != nil {
		return err
	}
	defer api.Close()
	return a.listen(ctx, f, api, registry, log)
}

// describeDaemon is what the API tells of it.
func (a *app) describeDaemon(ctx context.Context, host *sandbox.Host, o fleet.Options) (sandboxapi.Host, error) {
	arch, err := a.arch()
	if err != nil {
		return sandboxapi.Host{}, err
	}
	engine := host.Engine
	if a.jail.on { // then it runs nothing else
		if engine, err = host.Others(engineFirecracker, ""); err != nil {
			return sandboxapi.Host{}, err
		}
	}
	d, err := engine.Describe(ctx, arch, vmm.Auto)
	if err != nil {
		return sandboxapi.Host{}, err
	}
	limits := map[string]string{"longest timeout": o.MaxTimeout.String()}
	if o.MaxRunning > 0 {
		limits["running sandboxes of a key"] = strconv.Itoa(o.MaxRunning)
	}
	if o.MaxPaused > 0 {
		limits["paused sandboxes of a key"] = strconv.Itoa(o.MaxPaused)
	}
	var pools []string
	for name, p := range o.Pools {
		pools = append(pools, fmt.Sprintf("%s=%d", name, p.Size))
	}
	if slices.Sort(pools); len(pools) > 0 {
		limits["pools"] = strings.Join(pools, ", ")
	}
	return sandboxapi.Host{Version: a.version, Arch: arch, Engine: d.Engine, EngineVersion: d.Version, Accel: string(d.Accel), Limits: limits}, nil
}
