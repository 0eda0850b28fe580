package cli

import (
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// createFlags are what create takes beyond the machine.
type createFlags struct {
	machine      machineFlags
	steps        steps
	from, id     string
	names        []string
	labels       []string
	start, ready string
	readyTimeout time.Duration
	noCache      bool
	noPrefetch   bool
}

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	c := &cobra.Command{
		Use:   "create IMAGE",
		Short: "Make a machine from an image and freeze it",
		Long: `Makes a machine from an image, runs the steps, starts a command in it, waits until it is ready, and freezes it as a snapshot, whose id is printed.

IMAGE is a registry reference (debian:12), an OCI layout (oci:DIR[:TAG]), an archive (oci-archive:FILE, docker-archive:FILE), a folder (dir:DIR), a tar file
(tar:FILE), or a Debian suite with packages (apt:bookworm/python3-minimal,git).

Steps are carried out in the order in which they are given. Each is kept as a layer under the hash of all that it depends on, so the next creation with the
same beginning starts after it. The start command is left running in the snapshot. The ready command is retried every 2 s until it succeeds, for
as long as --ready-timeout says.

In the end the snapshot is woken twice, to learn what it touches of memory and disk until it has answered and run a first command: when it wakes from a bucket one
day, that is fetched ahead. This takes FUSE and root; without them, or with --no-prefetch, nothing is learned, and waking from afar is slower.

With --engine firecracker --jail the machine runs in Firecracker's jailer, which is looked for beside Firecracker and in PATH unless SPORE_JAILER names it. A snapshot
does not remember it: say it again to wake one. SPORE_JAIL_USERS=FIRST-LAST says whom jailed machines may run as; programs that share users must share SPORE_JAIL_DIR
(default /run/spore-jails) too. spore doctor says what is missing.`,
		Example: `  spore create apt:bookworm/python3-minimal -t py
  spore create debian:12 --run 'apt-get update' --copy ./app:/srv/app --workdir /srv/app --start './serve' --ready 'test -e /run/ready'
  spore create --from py --run 'pip install flask' -t flask`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return usageErrorf("create takes one image, got %d arguments", len(args))
			case (len(args) == 1) == (f.from != ""):
				return usageErrorf("name either an image or, with --from, a snapshot to start from")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.create(cmd, f, args) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringArrayVarP(&f.names, "tag", "t", nil, "`NAME` for the snapshot; may be repeated")
	flags.StringVar(&f.id, "id", "", "`UUID` of the snapshot (default a new one)")
	flags.StringVar(&f.from, "from", "", "start from the disk of this `SNAPSHOT` instead of an image")
	f.machine.register(flags)
	a.jailFlags(flags)
	f.steps.register(flags)
	flags.StringVar(&f.start, "start", "", "`COMMAND` to leave running in the snapshot")
	flags.StringVar(&f.ready, "ready", "", "`COMMAND` that succeeds once the machine is ready to be frozen")
	flags.DurationVar(&f.readyTimeout, "ready-timeout", 10*time.Minute, "how long the ready command may take to succeed")
	flags.StringArrayVar(&f.labels, "label", nil, "`NAME=VALUE` to keep with the snapshot; may be repeated")
	flags.BoolVar(&f.noPrefetch, "no-prefetch", false, "don't wake the snapshot twice to learn what it touches then")
	flags.BoolVar(&f.noCache, "no-cache", false, "run all steps, even those whose result is known")
	c.ValidArgsFunction = cobra.NoFileCompletions
	_ = c.RegisterFlagCompletionFunc("from", a.completeSnapshots)
	return c
}

func (a *app) create(cmd *cobra.Command, f createFlags, args []string) error {
	if f.readyTimeout < 0 { // zero, as create-build has it: the usual one
		return usageErrorf("--ready-timeout %v: choose more than nothing", f.readyTimeout)
	}
	spec, err := f.spec(a, args)
	if err != nil {
		return err
	}
	ctx, begin := cmd.Context(), time.Now()
	host, err := a.host(ctx)
	if err != nil {
		return err
	}
	if f.from != "" {
		if err := f.inherit(cmd, host, &spec); err != nil {
			return err
		}
	}
	if spec.Policy, err = f.machine.reach.policy(); err != nil { // only now: the kind of network may have been inherited
		return err
	}
	if err := spec.Check(); err != nil {
		return usageErrorf("%v", err)
	}
	progress := a.show()
	snap, err := host.Create(ctx, spec, progress)
	if err != nil {
		return err
	}
	progress.end()
	return a.created(snap, time.Since(begin))
}

// spec checks the flags and puts them together.
func (f *createFlags) spec(a *app, args []string) (sandbox.CreateSpec, error) {
	none := sandbox.CreateSpec{}
	arch, err := a.arch()
	if err != nil {
		return none, err
	}
	spec := f.machine.spec(arch)
	if f.id != "" {
		if spec.ID, err = parseID(f.id); err != nil {
			return none, err
		}
	}
	for _, name := range f.names {
		if err := store.CheckName(name); err != nil {
			return none, usageErrorf("--tag: %v", err)
		}
	}
	if spec.Labels, err = parseLabels(f.labels); err != nil {
		return none, err
	}
	if len(args) == 1 {
		spec.Image = args[0]
	}
	spec.From, spec.Names, spec.Steps = f.from, f.names, f.steps.list
	spec.StartCommand, spec.ReadyCommand, spec.NoCache = f.start, f.ready, f.noCache
	spec.ReadyTimeout, spec.NoPrefetch = f.readyTimeout, f.noPrefetch
	if err := spec.Check(); err != nil {
		return none, usageErrorf("%v", err)
	}
	return spec, nil
}

// inherit takes over from the snapshot to start from what no flag says otherwise.
func (f *createFlags) inherit(cmd *cobra.Command, host *sandbox.Host, spec *sandbox.CreateSpec) error {
	parent, err := host.Snapshots.Open(cmd.Context(), f.from)
	if err != nil {
		return err
	}
	defer parent.Close()
	m, flags := parent.Metadata(), cmd.Flags()
	spec.From, spec.DiskBytes = parent.ID().String(), m.DiskBytes
	if flags.Changed("disk") && int64(f.machine.disk) != m.DiskBytes {
		return usageErrorf("--disk: the disk of snapshot %s is %s and stays so; leave the flag out", f.from, formatBytes(m.DiskBytes))
	}
	if m.VCPUs > 0 && !flags.Changed("vcpu") {
		spec.CPUs = m.VCPUs
	}
	if m.MemoryBytes > 0 && !flags.Changed("memory") {
		spec.MemoryBytes = m.MemoryBytes
	}
	if m.Net != "" && !flags.Changed("net") {
		spec.Net = m.Net
	}
	return nil
}

// parseID reads a UUID in its usual form only: the library also knows braces and URNs. The flag that it comes from has several names.
func parseID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return uuid.Nil, usageErrorf("the id %q is not a UUID, which looks like 123e4567-e89b-42d3-a456-426614174000", text)
	}
	if id == uuid.Nil {
		return uuid.Nil, usageErrorf("the id %s stands for no snapshot: choose another", text)
	}
	return id, nil
}

// created reports a new snapshot: its id on stdout, the rest on stderr.
func (a *app) created(snap *snapshot.Snapshot, took time.Duration) error {
	defer snap.Close()
	m := snap.Metadata()
	if a.json {
		return a.printJSON(m)
	}
	a.say("created in %.1f s: memory %s and disk %s stored", took.Seconds(),
		formatBytes(m.Artifacts[snapshot.MemoryFile].Size), formatBytes(m.Artifacts[snapshot.DiskFile].Size))
	return a.println(snap.ID())
}
