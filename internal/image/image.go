// Package image turns a container image into the root filesystem of a
// machine: a clean, writable ext4 file, made once per image digest.
//
//	b, err := image.New(cacheDir, image.Options{})
//	img, err := b.Resolve(ctx, "oci:./layout:latest", image.Platform{})
//	path, err := b.Ext4(ctx, img, nil)
//	err = image.Grow(ctx, path, "disk.ext4", 4<<30)
//
// References are registry names ("name", "name:tag", "name@sha256:…") or begin
// with a scheme: "oci:DIR[:tag]", "oci-archive:FILE[:tag]",
// "docker-archive:FILE[:name]", "dir:DIR", "tar:FILE", "apt:SUITE[/pkg,…]".
package image

import (
	"cmp"
	"runtime"
)

// Platform is what an image runs on, in Go's words: "linux", "amd64".
type Platform struct {
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Variant string `json:"variant,omitempty"` // as "v8"; empty takes any
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// withDefaults fills in this host's platform.
func (p Platform) withDefaults() Platform {
	p.OS = cmp.Or(p.OS, "linux")
	p.Arch = cmp.Or(p.Arch, runtime.GOARCH)
	return p
}

// Config says how an image wants to be run.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // KEY=value
	WorkingDir   string            `json:"working_dir,omitempty"`
	User         string            `json:"user,omitempty"` // name or number, with an optional ":group"
	Labels       map[string]string `json:"labels,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted
}

// Image is a reference resolved to one immutable file system.
type Image struct {
	Ref      string   `json:"ref"`    // as asked for
	Digest   string   `json:"digest"` // "sha256:<hex>"; the same digest means the same ext4
	Platform Platform `json:"platform"`
	Config   Config   `json:"config"`
	// Packages are "name=version" or "name:arch=version", sorted; only of apt: images.
	Packages []string `json:"packages,omitempty"`

	layers []layer
}

// Phase names a part of the work in calls of a Progress.
type Phase string

// The phases, in order. Waiting is for another builder of the same image.
const (
	PhaseWait  Phase = "wait"  // no totals
	PhasePull  Phase = "pull"  // stored bytes of the layers
	PhaseBuild Phase = "build" // bytes of files
)

// Progress is told how far a phase is, in bytes; total is -1 where it isn't
// known. It is called from one goroutine at a time and often: it should be quick.
type Progress func(phase Phase, done, total int64)

// report calls p if there is one.
func (p Progress) report(phase Phase, done, total int64) {
	if p != nil {
		p(phase, done, total)
	}
}
