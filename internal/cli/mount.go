package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/expose"
)

// mountFlags are how a disk is mounted.
type mountFlags struct {
	writable, verify bool
	empty            bool
	size             string
	blockSize        int
	via              string
}

func (f *mountFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.verify, "verify", false, "have e2fsck look at the file system first")
	flags.BoolVar(&f.empty, "empty", false, "mount a new, empty file system, which is thrown away")
	flags.StringVar(&f.size, "size", "1GB", "size of the empty file system")
	flags.StringVar(&f.via, "via", string(expose.ViaAuto), "how the disk becomes a device: nbd (the kernel's own client for it), fuse (and a loop device), or auto (nbd where the kernel has it)")
	flags.IntVar(&f.blockSize, "block-size", 4096, "block size of the empty file system, in bytes: 1024, 2048 or 4096")
}

// check refuses flags that would do nothing.
func (f *mountFlags) check(flags *pflag.FlagSet) error {
	if !f.empty && (flags.Changed("size") || flags.Changed("block-size")) {
		return usageErrorf("--size and --block-size are for --empty: a snapshot's disk has its own")
	}
	if !slices.Contains([]expose.Via{expose.ViaAuto, expose.ViaNBD, expose.ViaFUSE}, expose.Via(f.via)) {
		return usageErrorf("--via %s: choose auto, nbd or fuse", f.via)
	}
	return nil
}

func (a *app) mountCommand() *cobra.Command {
	var f mountFlags
	c := &cobra.Command{
		Use:   "mount SNAPSHOT DIR",
		Short: "Mount a snapshot's disk on this host",
		Long: `Mounts a snapshot's root file system on a folder until spore is interrupted (Ctrl-C, or any signal that ends it). What is read is verified on the way, and comes from
wherever the store is, as it is needed. The mount is read-only; with --writable it can be written to, and what was written is thrown away in the end.

It takes root, and works by the kernel's own NBD client where that is loaded (sudo modprobe nbd), or else by FUSE and a loop device. Should spore be killed, the process
that serves the disk unmounts it; should that be killed, spore does. Nothing is left behind.`,
		Example: "  spore mount web /mnt\n  spore mount --empty --size 2GB /mnt",
		Args: func(_ *cobra.Command, args []string) error {
			if want := map[bool]int{true: 1, false: 2}[f.empty]; len(args) != want {
				return usageErrorf("mount takes a snapshot and a folder or, with --empty, a folder alone")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, partial string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 && !f.empty {
				return a.completeSnapshots(cmd, args, partial)
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd.Flags()); err != nil {
				return err
			}
			ref := ""
			if !f.empty {
				ref = args[0]
			}
			return a.mount(cmd.Context(), ref, args[len(args)-1], f)
		},
	}
	c.Flags().BoolVar(&f.writable, "writable", false, "allow writes, which are thrown away in the end")
	f.register(c.Flags())
	a.trustFlags(c.Flags())
	return c
}

func (a *app) mountBuildCommand() *cobra.Command {
	f := mountFlags{writable: true}
	var build, storage, dir string
	var log bool
	c := &cobra.Command{
		Use:   "mount-build-rootfs --build UUID --mount DIR",
		Short: "mount, under the flags of E2B's orchestrator",
		Long: `Does what mount --writable does, under the names and flags of E2B's orchestrator. Long flags also work with a single dash: -build UUID. -log tells every request
to the disk.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || (build == "") != f.empty {
				return usageErrorf("mount-build-rootfs needs -mount DIR, and one of -build UUID and -empty")
			}
			if err := f.check(cmd.Flags()); err != nil {
				return err
			}
			if a.storePath == "" {
				a.storePath = storage
			}
			a.verbose = a.verbose || log
			return a.mount(cmd.Context(), build, dir, f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&build, "build", "", "build to mount")
	flags.StringVar(&storage, "storage", fieldStorage, "where the builds are: a folder, gs://bucket/prefix or s3://bucket/prefix")
	flags.StringVar(&dir, "mount", "", "folder to mount it on")
	f.register(flags)
	flags.BoolVar(&log, "log", false, "tell every request to the disk")
	a.trustFlags(flags)
	c.Annotations = map[string]string{fieldFlags: "yes"}
	return c
}

// mountRequest is what the serving process is told, on its standard input. When that ends, the process unmounts and ends too.
type mountRequest struct {
	Snapshot  string `json:"snapshot"` // id; "" for an empty disk
	Dir       string `json:"dir"`
	Writable  bool   `json:"writable"`
	Verify    bool   `json:"verify"`
	Size      int64  `json:"size"`       // of an empty disk
	BlockSize int    `json:"block_size"` // of an empty disk

	Via  expose.Via `json:"via"`
	Mark string     `json:"mark"` // by which the device is found, should the process be killed
}

// mountReply is what it says once the disk is mounted.
type mountReply struct {
	Device string     `json:"device"`
	Via    expose.Via `json:"via"`
}

// mounted is the result as --json shows it.
type mounted struct {
	Snapshot string `json:"snapshot,omitempty"`
	Dir      string `json:"dir"`
	Device   string `json:"device"`
	Via      string `json:"via"` // nbd or fuse
}

// endingSignals end a mount as an interrupt does. Of itself this program would leave some of them out, and tell its registers at others.
var endingSignals = [...]os.Signal{
	unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGVTALRM, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGIO, unix.SIGPWR,
}

func (a *app) mount(ctx context.Context, ref, dir string, f mountFlags) error {
	ctx, release := signal.NotifyContext(ctx, endingSignals[:]...)
	defer release()
	request, err := a.mountRequest(ctx, ref, dir, f)
	if err != nil {
		return err
	}
	if err := a.mountAndWait(ctx, request); err != nil {
		return errors.Join(err, expose.ReleaseNBD(request.Mark)) // for the process may have been killed
	}
	return nil
}

func (a *app) mountAndWait(ctx context.Context, request mountRequest) error {
	server, err := a.startServer(request)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { server.stdin.Close() }) // which ends it, whatever it is at
	reply, err := server.reply()
	if !stop() || err != nil {
		return errors.Join(err, server.end(context.Background()))
	}
	result := mounted{Snapshot: request.Snapshot, Dir: request.Dir, Device: reply.Device, Via: string(reply.Via)}
	if a.json {
		err = a.printJSON(result)
	} else if err = a.println(result.Dir); err == nil {
		a.say("mounted by %s, from %s; interrupt spore to unmount", reply.Via, reply.Device)
	}
	if err != nil {
		return errors.Join(err, server.end(context.Background()))
	}
	select {
	case <-ctx.Done(): // the way to end it
		return server.end(context.Background())
	case err := <-server.ended:
		// Killed, or told to end. Without it the mount is dead; but what was asked of it before would be waited for.
		released := expose.ReleaseNBD(request.Mark)
		if unix.Unmount(request.Dir, unix.MNT_DETACH) == nil || err != nil {
			return fmt.Errorf("the process that served the disk has ended: %w", errors.Join(err, errors.New("unmounted"), released))
		}
		return released
	}
}

func (a *app) mountRequest(ctx context.Context, ref, dir string, f mountFlags) (mountRequest, error) {
	r := mountRequest{Writable: f.writable || f.empty, Verify: f.verify, Via: expose.Via(f.via), Mark: "spore-" + uuid.NewString()}
	if os.Geteuid() != 0 {
		return r, errors.New("mounting takes root: run spore by sudo, with --store as before")
	}
	var err error
	if r.Dir, err = filepath.Abs(dir); err != nil {
		return r, fmt.Errorf("finding %s: %w", dir, err)
	}
	if st, err := os.Stat(r.Dir); err != nil || !st.IsDir() {
		return r, usageErrorf("%s is not a folder to mount on", dir)
	}
	if f.empty {
		if r.Size, err = parseSize(f.size); err != nil {
			return r, usageErrorf("--size: %v", err)
		}
		r.BlockSize = f.blockSize
		if r.Size < 1<<20 || r.Size > 16<<40 || r.Size%4096 != 0 {
			return r, usageErrorf("--size %s: choose a multiple of 4 KiB from 1 MiB to 16 TiB", f.size)
		}
		if f.blockSize != 1024 && f.blockSize != 2048 && f.blockSize != 4096 {
			return r, usageErrorf("--block-size %d: choose 1024, 2048 or 4096", f.blockSize)
		}
		return r, nil
	}
	repo, err := a.repo(ctx)
	if err != nil {
		return r, err
	}
	s, err := repo.Open(ctx, ref) // so that what is wrong with it is said here
	if err != nil {
		return r, err
	}
	r.Snapshot = s.ID().String()
	return r, s.Close()
}
