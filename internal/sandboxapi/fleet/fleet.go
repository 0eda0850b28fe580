// Package fleet is the sandboxes of one daemon: it makes them, forks them, lets them sleep and wake, ends them when their time is up, and knows all of them
// again after a restart.
//
// A running sandbox lives in this process. One that is paused is a snapshot and a row in the database, and nothing else. Whatever is told of a sandbox is
// told by its [Info]; whatever goes wrong is an [Error], whose kind says what the caller can do.
package fleet

import (
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/network"
)

// State is what a sandbox is doing.
type State string

// The states. A dead sandbox is remembered for a while, so that its clients are told what became of it; it is in no list.
const (
	Running State = "running"
	Paused  State = "paused"
	Dead    State = "dead"
)

// Action is what happens to a sandbox whose time is up.
type Action string

// The actions.
const (
	Kill  Action = "kill"
	Pause Action = "pause"
)

// Info is what is known of a sandbox.
type Info struct {
	ID       string    // 32 hexadecimal digits, for all its lives
	Template uuid.UUID // the snapshot it was forked from
	Name     string    // the name by which the template was asked for; empty if by its id
	Parent   string    // the running sandbox that it was forked from; empty: none
	Owner    string    // id of the key that made it; empty: no key was needed
	State    State
	Reason   string // why it is dead
	Damaged  bool   `json:",omitempty"` // it died of damage in what is stored of it
	Started  time.Time
	End      time.Time     // when its time is up
	Timeout  time.Duration // what it was made with

	OnTimeout  Action
	AutoResume bool // a request to it wakes it
	Secure     bool // its agent wants Token
	Metadata   map[string]string
	Token      string `json:"-"` // access token of the agent; empty if it is not Secure
	Private    bool   // its ports want Traffic, but for the agent's
	Traffic    string `json:"-"` // access token of its ports; empty if it is not Private

	CPUs         int
	MemoryBytes  int64
	DiskBytes    int64
	AgentVersion string
	Net          string         // none, user, tap
	Reach        network.Policy // what it may reach, of a tap; it stays so when it sleeps, and its forks may reach the same

	Snapshot uuid.UUID     // what it was last woken from or frozen as
	Wake     time.Duration // how long its last wake took, until its agent answered
	Pooled   bool          // it was waiting in a pool
}

// CreateSpec says what sandbox to make.
type CreateSpec struct {
	Template   string // name or id of a snapshot
	Owner      string
	Timeout    time.Duration // zero: the default
	OnTimeout  Action        // empty: Kill
	AutoResume bool
	Insecure   bool // no token is needed to talk to its agent
	Private    bool // one is needed to talk to its other ports
	Metadata   map[string]string
	Env        map[string]string // added to that of the template for all that runs in it

	Reach Reach
}

// Reach says what a sandbox may reach: Allow and Deny are addresses and networks that it may, or may not; allow wins. Offline denies all that is not allowed.
// Only a sandbox with a tap interface can be told so.
type Reach struct {
	Allow, Deny []string
	Offline     bool
}

// Filter chooses sandboxes of a list.
type Filter struct {
	Owner        string            // empty: everybody's
	States       []State           // none: Running and Paused
	Metadata     map[string]string // all of it must match
	Template     string            // name or id
	StartedAfter time.Time         // or then
	Oldest       bool              // oldest first; else youngest first

	Limit int    // at most so many; zero: 100
	Token string // where to go on: what the page before returned
}

// Page is a part of a list.
type Page struct {
	Sandboxes []Info
	Next      string // token of the next page; empty: there is none
	Running   int    // sandboxes that run, of all that are chosen
}

// Fork is one of the sandboxes that a fork was to make.
type Fork struct {
	Info Info
	Err  error
}

// ForkReport tells what a fork did to the sandbox that was forked.
type ForkReport struct {
	Snapshot uuid.UUID     // that all forks stand on
	Stopped  time.Duration // it stood still
}

// Template is a snapshot that sandboxes can be made from.
type Template struct {
	ID           uuid.UUID
	Names        []string
	CPUs         int
	MemoryBytes  int64
	DiskBytes    int64
	AgentVersion string
	Created      time.Time
	Forks        int       // sandboxes that stand on it, running or paused
	Spawned      int64     // sandboxes ever made from it
	LastSpawned  time.Time // zero: never
	Parent       uuid.UUID // nil UUID: none
	Image        string
	Pool         int // sandboxes that wait
	PoolSize     int // and are meant to
}

// LogEntry is something that happened to a sandbox.
type LogEntry struct {
	Time    time.Time
	Level   string // debug, info, warn, error
	Message string
	Fields  map[string]string
}

// Metric is a measurement of a running sandbox.
type Metric struct {
	Time                time.Time
	CPUs                int
	CPUPercent          float64 // 100 being one CPU
	MemTotal, MemUsed   int64   // bytes, as are all below
	MemCache            int64
	DiskTotal, DiskUsed int64

	// VMM is what the machine's monitor has measured, see [vmm.Measured]. Only the latest measurement has it, and not on all engines.
	VMM map[string]float64
}
