package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/sporevm/spore/internal/block/framecache"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/bucket"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// paths are the folders that spore works in.
type paths struct {
	Store        string `json:"store"`        // snapshots: a folder, or the URL of a bucket
	Kernels      string `json:"kernels"`      // guest kernels
	Firecrackers string `json:"firecrackers"` // versions of Firecracker
	Cache        string `json:"cache"`        // may be deleted between runs
	Run          string `json:"run"`          // live machines
}

// paths reads them from flags and environment; nothing is created.
func (a *app) paths() (paths, error) {
	data, err := a.home("XDG_DATA_HOME", ".local/share")
	if err != nil {
		return paths{}, err
	}
	cache, err := a.home("XDG_CACHE_HOME", ".cache")
	if err != nil {
		return paths{}, err
	}
	p := paths{
		Store:        first(a.storePath, a.Getenv("SPORE_STORE"), filepath.Join(data, "store")),
		Kernels:      first(a.Getenv("HOST_KERNELS_DIR"), filepath.Join(data, "kernels")),
		Firecrackers: first(a.Getenv("FIRECRACKER_VERSIONS_DIR"), filepath.Join(data, "firecracker")),
		Cache:        first(a.Getenv("SNAPSHOT_CACHE_DIR"), cache),
		Run:          a.runDir(),
	}
	folders := []*string{&p.Kernels, &p.Firecrackers, &p.Cache, &p.Run}
	if !bucket.IsURL(p.Store) {
		folders = append(folders, &p.Store)
	}
	for _, path := range folders {
		if *path, err = filepath.Abs(*path); err != nil {
			return paths{}, fmt.Errorf("finding the working folders: %w", err)
		}
	}
	return p, nil
}

// home returns spore's folder below one of the user's base folders.
func (a *app) home(variable, fallback string) (string, error) {
	if dir := a.Getenv(variable); filepath.IsAbs(dir) { // relative ones are to be ignored, says the XDG specification
		return filepath.Join(dir, "spore"), nil
	}
	if home := a.Getenv("HOME"); home != "" {
		return filepath.Join(home, fallback, "spore"), nil
	}
	return "", usageErrorf("neither %s nor HOME is set: spore does not know where to keep its files", variable)
}

// runDir must be short: the names of sockets are limited to 107 bytes.
func (a *app) runDir() string {
	if dir := a.Getenv("SANDBOX_DIR"); dir != "" {
		return dir
	}
	if dir := a.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "spore")
	}
	if os.Geteuid() == 0 {
		return "/run/spore"
	}
	return filepath.Join(os.TempDir(), "spore-"+strconv.Itoa(os.Geteuid()))
}

func first(candidates ...string) string {
	for _, c := range candidates {
		if c != "" {
			return c
		}
	}
	return ""
}

// arch is the guest's architecture: the host's unless TARGET_ARCH says otherwise.
func (a *app) arch() (string, error) {
	switch arch := a.Getenv("TARGET_ARCH"); arch {
	case "":
		return runtime.GOARCH, nil
	case "amd64", "arm64":
		return arch, nil
	default:
		return "", usageErrorf("TARGET_ARCH is %q: choose amd64 or arm64", arch)
	}
}

// repo opens the store at hand. A folder is created when it is written to first.
func (a *app) repo(ctx context.Context) (*snapshot.Repo, error) {
	p, err := a.paths()
	if err != nil {
		return nil, err
	}
	return a.openRepo(ctx, p.Store)
}

// openRepo opens the store at a location.
func (a *app) openRepo(ctx context.Context, location string) (*snapshot.Repo, error) {
	p, err := a.paths()
	if err != nil {
		return nil, err
	}
	options, err := a.trust()
	if err != nil {
		return nil, err
	}
	st, err := openStore(ctx, location, p.Cache)
	if err != nil {
		return nil, err
	}
	if bucket.IsURL(location) {
		limit := int64(frameCacheLimit)
		if text := a.Getenv("SPORE_CACHE_LIMIT"); text != "" {
			if limit, err = parseSize(text); err != nil {
				return nil, usageErrorf("SPORE_CACHE_LIMIT: %v", err)
			}
		}
		options = append(options, snapshot.Far(framecache.Open(filepath.Join(p.Cache, "frames"), limit)))
	}
	repo, err := snapshot.Open(st, p.Cache, options...)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", location, err)
	}
	return repo, nil
}

// frameCacheLimit is how much of a bucket is kept on this host, in bytes, unless SPORE_CACHE_LIMIT says otherwise.
const frameCacheLimit = 10 << 30

// openStore opens a folder or a bucket. A folder needs no cloud client, and none is made.
func openStore(ctx context.Context, location, cache string) (store.Store, error) {
	if !bucket.IsURL(location) {
		dir, err := store.OpenDir(location)
		if err != nil {
			return nil, fmt.Errorf("opening the store %s: %w", location, err)
		}
		return dir, nil
	}
	spool := filepath.Join(cache, "uploads")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, fmt.Errorf("opening the store: making room for uploads: %w", err)
	}
	return bucket.Open(ctx, location, bucket.Options{TempDir: spool})
}

// networks are where machines get their tap interfaces; none is made yet.
func (a *app) networks() (*network.Pool, error) {
	subnet := network.DefaultSubnet
	if text := a.Getenv("SPORE_TAP_SUBNET"); text != "" {
		var err error
		if subnet, err = netip.ParsePrefix(text); err != nil {
			return nil, usageErrorf("SPORE_TAP_SUBNET is %q: choose an IPv4 network such as %s", text, network.DefaultSubnet)
		}
	}
	pool, err := network.NewPool(subnet)
	if err != nil {
		return nil, usageErrorf("SPORE_TAP_SUBNET: %v", err)
	}
	return pool, nil
}

// host makes ready to run machines.
func (a *app) host(ctx context.Context) (*sandbox.Host, error) { return a.hostWith(ctx, a.log()) }

// hostWith is host with a log of its own.
func (a *app) hostWith(ctx context.Context, log *slog.Logger) (*sandbox.Host, error) {
	p, err := a.paths()
	if err != nil {
		return nil, err
	}
	repo, err := a.repo(ctx)
	if err != nil {
		return nil, err
	}
	images, err := image.New(filepath.Join(p.Cache, "images"), image.Options{})
	if err != nil {
		return nil, err
	}
	networks, err := a.networks()
	if err != nil {
		return nil, err
	}
	own := vmm.Engine(qemu.New(p.Cache))
	if jail, err := a.jailed(); err != nil {
		return nil, err
	} else if jail != nil {
		own = unjailed{own}
	}
	if err := a.sweepJails(); err != nil {
		log.Warn("what dead machines have left of jails stays", "error", err)
	}
	pages := a.pageServer(p, log)
	host, err := sandbox.NewHost(sandbox.HostOptions{
		Snapshots: repo, Images: images, Engine: own, Others: a.otherEngine, Networks: networks, KernelsDir: p.Kernels, CacheDir: p.Cache, RunDir: p.Run, Log: log,
		LazyMemory: a.lazyMemory(p), Pages: pages, Abandoned: func(dir string) error { return pages.abandoned(ctx, dir) },
	})
	if err == nil {
		pages.workDir = host.WorkDir
	}
	return host, err
}
