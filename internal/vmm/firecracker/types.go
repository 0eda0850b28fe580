package firecracker

// The bodies of Firecracker's API, as far as they are used here. Each says the version that it, or a field of it, came with, where that is after 1.10.

type machineConfig struct {
	VCPUs      int   `json:"vcpu_count"` // 1 to 32
	MemoryMiB  int64 `json:"mem_size_mib"`
	SMT        bool  `json:"smt"`
	TrackDirty bool  `json:"track_dirty_pages"`
}

type bootSource struct {
	Kernel    string `json:"kernel_image_path"`
	Initramfs string `json:"initrd_path,omitempty"`
	Args      string `json:"boot_args,omitempty"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
}

type networkInterface struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
	MAC string `json:"guest_mac,omitempty"`
}

type vsock struct {
	CID  uint32 `json:"guest_cid"` // 3 or more
	Path string `json:"uds_path"`
}

type entropy struct{}

// Balloon is the memory that the guest has been asked to give back.
type Balloon struct {
	MiB          int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
}

type action struct {
	Type string `json:"action_type"`
}

const (
	actionStart        = "InstanceStart"
	actionFlushMetrics = "FlushMetrics"
)

type vmState struct {
	State string `json:"state"`
}

const (
	statePaused  = "Paused"
	stateResumed = "Resumed"
)

type snapshotCreate struct {
	Type   string `json:"snapshot_type"`
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

const (
	snapshotFull = "Full"
	snapshotDiff = "Diff" // only pages that were written since the start or the last snapshot; a developer preview up to 1.16
)

type snapshotLoad struct {
	State      string            `json:"snapshot_path"`
	Memory     memoryBackend     `json:"mem_backend"`
	TrackOld   bool              `json:"enable_diff_snapshots,omitempty"` // up to 1.12
	Track      bool              `json:"track_dirty_pages,omitempty"`     // 1.13
	Interfaces []networkOverride `json:"network_overrides,omitempty"`     // 1.12
	Vsock      *vsockOverrideTo  `json:"vsock_override,omitempty"`        // 1.16
}

type memoryBackend struct {
	Type string `json:"backend_type"`
	Path string `json:"backend_path"`
}

const (
	backendFile = "File"
	backendUffd = "Uffd"
)

// networkOverride came with 1.12.
type networkOverride struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
}

// vsockOverrideTo came with 1.16.
type vsockOverrideTo struct {
	Path string `json:"uds_path"`
}

type versionAnswer struct {
	Version string `json:"firecracker_version"`
}
