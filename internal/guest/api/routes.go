// Package api holds what the host and the guest agent say to each other: the
// protobuf packages process and filesystem with their Connect services, and the
// JSON bodies of spore's own routes.
//
// All of it travels over one HTTP/2 session without TLS on one byte stream.
package api

// Paths of the plain HTTP routes. The Connect services live under the names of
// their protobuf services.
const (
	PathHealth  = "/health"           // GET: 204 once the agent serves
	PathMetrics = "/metrics"          // GET: Metrics
	PathEnvs    = "/envs"             // GET: the environment of new processes
	PathFiles   = "/files"            // GET, POST: file contents
	PathWake    = "/spore/v1/wake"    // POST: Identity -> WakeReport
	PathQuiesce = "/spore/v1/quiesce" // POST: QuiesceOptions -> QuiesceReport
	PathStats   = "/spore/v1/stats"   // GET: Stats
	PathDial    = "/spore/v1/dial"    // POST: a byte stream to a TCP port of the guest
	PathSymlink = "/spore/v1/symlink" // POST: Symlink -> 204
)

// PublicVersion is the release of the public API's own agent that this one can do
// as much as: SDKs use no feature that came later. It covers files as plain bodies,
// metadata of files, entries in the events of a watch, and watches of network mounts.
const PublicVersion = "0.6.4"

// Limits that both sides hold.
const (
	MinEntropy  = 32      // bytes of Identity.Entropy that a wake must bring
	MaxEntropy  = 512     // bytes that it may bring
	MaxJSONBody = 1 << 20 // bytes of any JSON body
	MaxMessage  = 8 << 20 // bytes of one Connect message
)

// Identity is what makes a woken guest somebody: it is handed over before any
// user process runs again.
type Identity struct {
	Generation string   `json:"generation"` // UUID, fresh for every wake
	Epoch      uint64   `json:"epoch"`      // counts the wakes of one sandbox, from 1
	Time       int64    `json:"time"`       // wall clock, nanoseconds since 1970; 0: leave the guest's alone
	Entropy    []byte   `json:"entropy"`    // MinEntropy to MaxEntropy random bytes
	Hostname   string   `json:"hostname,omitempty"`
	MachineID  string   `json:"machine_id,omitempty"` // 32 hex digits
	Net        *Net     `json:"net,omitempty"`        // nil: leave the network alone
	Context    *Context `json:"context,omitempty"`    // nil: keep the one in force

	// Hold keeps user processes frozen until a second request of the same
	// generation comes, which needs nothing but the generation and the time.
	// The first may take long in a guest that has just been thawed, and its
	// time is as old by then; the second is quick.
	Hold bool `json:"hold,omitempty"`
}

// Net configures the guest's one network interface.
type Net struct {
	Interface string   `json:"interface,omitempty"` // empty: the first that is not loopback
	MAC       string   `json:"mac,omitempty"`
	Address   string   `json:"address,omitempty"` // CIDR: 10.0.2.15/24
	Gateway   string   `json:"gateway,omitempty"`
	DNS       []string `json:"dns,omitempty"`
}

// Context is where and as whom new processes run when a request does not say.
type Context struct {
	User    string            `json:"user,omitempty"`    // name or number, with ":group" if wanted; empty: root
	Workdir string            `json:"workdir,omitempty"` // empty: the user's home
	Env     map[string]string `json:"env,omitempty"`
}

// WakeReport confirms an Identity: everything in it is in force.
type WakeReport struct {
	Generation   string `json:"generation"`
	Epoch        uint64 `json:"epoch"`
	AgentVersion string `json:"agent_version"`
	Kernel       string `json:"kernel,omitempty"`
	ClockStep    int64  `json:"clock_step"`         // nanoseconds by which the wall clock was moved
	Time         int64  `json:"time"`               // the guest's wall clock as it answered, nanoseconds since 1970
	Entropy      int    `json:"entropy"`            // bytes credited to the kernel's pool
	Thawed       bool   `json:"thawed"`             // user processes were frozen and run again
	Duration     int64  `json:"duration,omitempty"` // nanoseconds the guest spent on the wake
}

// QuiesceOptions says how still the guest must be. Processes are frozen and
// file systems synced in any case.
type QuiesceOptions struct {
	DropCaches       bool  `json:"drop_caches,omitempty"`       // give clean page cache back
	Compact          bool  `json:"compact,omitempty"`           // gather free memory into large pieces
	FreezeFilesystem bool  `json:"freeze_filesystem,omitempty"` // FIFREEZE the root file system
	Timeout          int64 `json:"timeout,omitempty"`           // nanoseconds for all of it; 0: 30 s
}

// QuiesceReport tells what the guest looked like once it was still.
type QuiesceReport struct {
	Frozen     int   `json:"frozen"`      // processes held in the user cgroup
	MemTotal   int64 `json:"mem_total"`   // bytes of RAM, with what the kernel keeps for itself
	MemFree    int64 `json:"mem_free"`    // bytes
	MemUsed    int64 `json:"mem_used"`    // bytes that the guest cannot do without: total less free
	FreezeTime int64 `json:"freeze_time"` // nanoseconds until every process stood still
	SyncTime   int64 `json:"sync_time"`   // nanoseconds of sync
	Duration   int64 `json:"duration"`    // nanoseconds of the whole

	Processes []ProcessInfo `json:"processes,omitempty"` // the frozen ones, at most MaxProcesses
}

// Limits of what is told of processes.
const (
	MaxProcesses = 512
	MaxCommand   = 256 // bytes
)

// ProcessInfo is a process of the user's.
type ProcessInfo struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"ppid"`
	UID     int    `json:"uid"`
	Command string `json:"command"` // its arguments, or its [name] when it has none
}

// Stats is what a guest tells about itself.
type Stats struct {
	AgentVersion string  `json:"agent_version"`
	Kernel       string  `json:"kernel"`
	Time         int64   `json:"time"`   // the guest's wall clock, nanoseconds since 1970
	Uptime       int64   `json:"uptime"` // nanoseconds the guest has run, frozen time left out
	CPUs         int     `json:"cpus"`
	CPUBusy      int64   `json:"cpu_busy"` // nanoseconds of all CPUs since boot
	CPUTotal     int64   `json:"cpu_total"`
	Load1        float64 `json:"load1"`
	MemTotal     int64   `json:"mem_total"` // bytes, as are all below
	MemFree      int64   `json:"mem_free"`
	MemAvailable int64   `json:"mem_available"`
	MemCached    int64   `json:"mem_cached"`
	DiskTotal    int64   `json:"disk_total"` // of the root file system
	DiskFree     int64   `json:"disk_free"`
	AgentRSS     int64   `json:"agent_rss"`
	Processes    int     `json:"processes"` // started through the process service and alive
	OOMKills     int64   `json:"oom_kills"` // since boot
}

// Metrics is the public API's shorter form of Stats.
type Metrics struct {
	Timestamp  int64   `json:"ts"` // seconds since 1970
	CPUCount   int     `json:"cpu_count"`
	CPUUsedPct float64 `json:"cpu_used_pct"` // since the previous call, 100 being all CPUs
	MemTotal   int64   `json:"mem_total"`    // bytes, as are all below
	MemUsed    int64   `json:"mem_used"`
	MemCache   int64   `json:"mem_cache"`
	DiskUsed   int64   `json:"disk_used"`
	DiskTotal  int64   `json:"disk_total"`
}

// FileEntry is how an upload names each file it wrote.
type FileEntry struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"` // always "file"
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Symlink asks for a symbolic link, which the file system service cannot make.
// An existing link or file of that name is replaced, a directory is not.
type Symlink struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Error is the body of every plain HTTP answer of 400 and above.
type Error struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Reason is the header and trailer in which the agent refines an error, for
// callers that must tell apart what the public API's codes do not.
const Reason = "Spore-Reason"

// Values of the Reason header.
const (
	ReasonNotFound   = "not-found"  // no such program
	ReasonPermission = "permission" // a program that may not be executed
	ReasonDirectory  = "directory"  // a working directory that cannot be entered
)
