package sandboxapi

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// clientID is a field that SDKs want and nobody uses.
const clientID = "local"

// briefly is what a client is told of a sandbox that it has just got.
func (s *Server) briefly(r *http.Request, info fleet.Info) openapi.Sandbox {
	return openapi.Sandbox{
		SandboxID: info.ID, TemplateID: info.Template.String(), Alias: info.Name, ClientID: clientID, EnvdVersion: api.PublicVersion,
		EnvdAccessToken: token(info), TrafficAccessToken: info.Traffic, Domain: s.domain(r),
	}
}

func token(info fleet.Info) string {
	if !info.Secure {
		return ""
	}
	return info.Token
}

// domain is where the client finds ports of sandboxes: PORT-ID.domain.
func (s *Server) domain(r *http.Request) string {
	if s.o.Domain != "" {
		return s.o.Domain
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = r.Host, ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if !ip.IsLoopback() {
			return "" // nothing can be put before an address
		}
		host = "localhost"
	}
	if port != "" {
		return net.JoinHostPort(host, port)
	}
	return host
}

// inList is a sandbox as one of a list.
func (s *Server) inList(info fleet.Info) openapi.ListedSandbox {
	return openapi.ListedSandbox{
		SandboxID: info.ID, TemplateID: info.Template.String(), Alias: info.Name, ClientID: clientID, EnvdVersion: api.PublicVersion,
		StartedAt: info.Started.UTC(), EndAt: info.End.UTC(), State: openapi.SandboxState(info.State),
		CPUCount: info.CPUs, MemoryMB: mib(info.MemoryBytes), DiskSizeMB: mib(info.DiskBytes), Metadata: info.Metadata, Spore: origin(info),
	}
}

func origin(info fleet.Info) openapi.SandboxOrigin {
	return openapi.SandboxOrigin{
		Parent: info.Parent, Snapshot: idOrEmpty(info.Snapshot), WakeMs: milliseconds(info.Wake), Pooled: info.Pooled, Net: info.Net, AgentVersion: info.AgentVersion,
	}
}

// inDetail is all that is told of a sandbox.
func (s *Server) inDetail(r *http.Request, info fleet.Info) openapi.SandboxDetail {
	d := openapi.SandboxDetail{
		SandboxID: info.ID, TemplateID: info.Template.String(), Alias: info.Name, ClientID: clientID, EnvdVersion: api.PublicVersion,
		EnvdAccessToken: token(info), Domain: s.domain(r),
		StartedAt: info.Started.UTC(), EndAt: info.End.UTC(), State: openapi.SandboxState(info.State),
		CPUCount: info.CPUs, MemoryMB: mib(info.MemoryBytes), DiskSizeMB: mib(info.DiskBytes), Metadata: info.Metadata,
		Network: openapi.Network{AllowPublicTraffic: !info.Private, AllowOut: prefixes(info.Reach.Allow), DenyOut: prefixes(info.Reach.Deny)},
		Spore:   origin(info),
	}
	reaches := online(info)
	d.AllowInternetAccess = &reaches
	d.Lifecycle.AutoResume, d.Lifecycle.OnTimeout = info.AutoResume, openapi.Kill
	if info.OnTimeout == fleet.Pause {
		d.Lifecycle.OnTimeout = openapi.Pause
	}
	return d
}

// template is all that is told of a template.
func template(t fleet.Template) openapi.Template {
	id := t.ID.String()
	out := openapi.Template{
		TemplateID: id, BuildID: id, Names: notNil(t.Names), Aliases: notNil(t.Names), Public: true, BuildStatus: openapi.BuildStatusReady, BuildCount: 1,
		CPUCount: t.CPUs, MemoryMB: mib(t.MemoryBytes), DiskSizeMB: mib(t.DiskBytes), EnvdVersion: api.PublicVersion,
		CreatedAt: t.Created.UTC(), UpdatedAt: t.Created.UTC(), SpawnCount: t.Spawned,
		Builds: []openapi.TemplateBuild{{
			BuildID: id, Status: openapi.BuildStatusReady, CreatedAt: t.Created.UTC(), UpdatedAt: t.Created.UTC(), FinishedAt: t.Created.UTC(),
			CPUCount: t.CPUs, MemoryMB: mib(t.MemoryBytes), DiskSizeMB: mib(t.DiskBytes), EnvdVersion: api.PublicVersion,
		}},
	}
	if !t.LastSpawned.IsZero() {
		last := t.LastSpawned.UTC()
		out.LastSpawnedAt = &last
	}
	out.Spore.Forks, out.Spore.Pool, out.Spore.PoolSize, out.Spore.Image, out.Spore.AgentVersion = t.Forks, t.Pool, t.PoolSize, t.Image, t.AgentVersion
	out.Spore.Parent = idOrEmpty(t.Parent)
	return out
}

func metric(m fleet.Metric) openapi.SandboxMetric {
	return openapi.SandboxMetric{
		Timestamp: m.Time.UTC(), TimestampUnix: m.Time.Unix(), CPUCount: m.CPUs, CPUUsedPct: m.CPUPercent / float64(max(1, m.CPUs)),
		MemTotal: m.MemTotal, MemUsed: m.MemUsed, MemCache: m.MemCache, DiskTotal: m.DiskTotal, DiskUsed: m.DiskUsed, VMM: m.VMM,
	}
}

func logEntry(e fleet.LogEntry) openapi.LogEntry {
	out := openapi.LogEntry{Timestamp: e.Time.UTC(), Level: openapi.LogLevel(e.Level), Message: e.Message, Fields: e.Fields}
	if out.Fields == nil {
		out.Fields = map[string]string{}
	}
	return out
}

func prefixes(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mib(bytes int64) int64 { return bytes >> 20 }

// idOrEmpty leaves out the id that stands for none.
func idOrEmpty(id uuid.UUID) string {
	if id == uuid.Nil {
		return ""
	}
	return id.String()
}

func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
