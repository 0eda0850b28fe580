package cli

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/internal/store/bucket"
)

// What E2B's tools assume where a flag is left out.
const (
	fieldStorage = ".local-build"
	fieldImage   = "e2bdev/base:latest"
)

// buildFlags are what create-build and resume-build share.
type buildFlags struct {
	from, to, storage, sandboxDir string
}

func (f *buildFlags) register(c *cobra.Command) {
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.from, "from-build", "", "build to start from")
	flags.StringVar(&f.to, "to-build", "", "`UUID` of the build to make")
	flags.StringVar(&f.storage, "storage", fieldStorage, "where the builds are: a folder, gs://bucket/prefix or s3://bucket/prefix")
	flags.StringVar(&f.sandboxDir, "sandbox-dir", "", "folder for live machines; a short path (default SANDBOX_DIR, or the user's run folder)")
	c.Annotations = map[string]string{fieldFlags: "yes"}
}

// apply makes the storage folder the store, with cache and kernels below it unless the environment says otherwise.
func (f *buildFlags) apply(a *app) {
	if a.storePath == "" {
		a.storePath = f.storage
	}
	outer, sandboxDir := a.Getenv, f.sandboxDir
	storage := a.storePath
	if bucket.IsURL(storage) {
		storage = fieldStorage // a bucket has no folders beside it
	}
	a.Getenv = func(name string) string {
		if v := outer(name); v != "" && name != "SANDBOX_DIR" {
			return v
		}
		switch name {
		case "SNAPSHOT_CACHE_DIR":
			return filepath.Join(storage, "snapshot-cache")
		case "HOST_KERNELS_DIR":
			// Kernels that `make kernel` has fetched for the user serve as well as a copy of their own.
			if dir := filepath.Join(storage, "kernels"); isFolder(dir) {
				return dir
			}
		case "FIRECRACKER_VERSIONS_DIR":
			if dir := filepath.Join(storage, "fc-versions"); isFolder(dir) {
				return dir
			}
		case "SANDBOX_DIR":
			return first(sandboxDir, outer(name))
		}
		return ""
	}
}

func isFolder(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func (a *app) createBuildCommand() *cobra.Command {
	var f buildFlags
	var machine machineFlags
	var image, fromImage, template, start, ready string
	var hugepages bool
	c := &cobra.Command{
		Use:   "create-build --to-build UUID",
		Short: "create, under the flags of E2B's orchestrator",
		Long: `Does what create does, under the names, flags and defaults of E2B's orchestrator. Long flags also work with a single dash: -to-build UUID.

Builds are kept in .local-build unless -storage says otherwise, with a cache beside them (SNAPSHOT_CACHE_DIR). SNAPSHOT_CACHE_DIR, HOST_KERNELS_DIR,
FIRECRACKER_VERSIONS_DIR, SANDBOX_DIR and TARGET_ARCH are honoured. Machines run on QEMU unless -engine firecracker is given, which -firecracker VERSION then chooses one of;
-hugepages is accepted and changes nothing: memory is in ordinary pages.`,
		Example: "  spore create-build -to-build 123e4567-e89b-42d3-a456-426614174000 -image debian:12 -start-cmd 'nginx' -ready-cmd 'curl -f localhost'",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.to == "":
				return usageErrorf("create-build needs -to-build UUID, the id of the build to make")
			case f.from != "" && (cmd.Flags().Changed("image") || fromImage != ""):
				return usageErrorf("choose one of -from-build and -image")
			}
			f.apply(a)
			create := createFlags{machine: machine, from: f.from, id: f.to, labels: []string{"template=" + template}, start: start, ready: ready}
			create.machine.accel, create.machine.net = "auto", "none"
			if cmd.Flags().Changed("hugepages") {
				a.say("-hugepages changes nothing: memory is in ordinary pages")
			}
			if machine.version != "" && machine.engine != engineFirecracker {
				a.say("-firecracker changes nothing: the machine runs on QEMU unless -engine says otherwise")
			}
			if err := a.hasFirecracker(create.machine); err != nil {
				return err
			}
			if f.from != "" {
				return a.create(cmd, create, nil)
			}
			return a.create(cmd, create, []string{first(fromImage, image)})
		},
	}
	f.register(c)
	flags := c.Flags()
	flags.StringVar(&image, "image", fieldImage, "image to start from, in any form that create takes")
	flags.StringVar(&fromImage, "fromImage", "", "the same as -image")
	flags.StringVar(&template, "template", "local-template", "template id, kept as the label template")
	machine.registerSizes(flags)
	flags.StringVar(&machine.kernel, "kernel", "", "guest kernel: a path, or a version below HOST_KERNELS_DIR")
	machine.registerEngine(flags)
	a.jailFlags(flags)
	flags.StringVar(&machine.version, "firecracker", "", "version of Firecracker, with -engine firecracker; accepted for compatibility without")
	flags.BoolVar(&hugepages, "hugepages", true, "accepted for compatibility")
	flags.StringVar(&start, "start-cmd", "", "`COMMAND` to leave running in the snapshot")
	flags.StringVar(&ready, "ready-cmd", "", "`COMMAND` that succeeds once the machine is ready to be frozen")
	return c
}
