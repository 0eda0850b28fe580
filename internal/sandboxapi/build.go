package sandboxapi

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/builds"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// uploads is where files of builds are sent to. It is not in the document: a body that must not be read as a whole is nothing for a validator.
const uploads = "/spore/v1/uploads/"

const defaultBuildLogs = 100

// builder returns what builds templates here.
func (s routes) builder() (*builds.Builds, error) {
	if s.o.Builds == nil {
		return nil, &fleet.Error{Kind: fleet.Invalid, Message: "this daemon builds no templates", Hint: "make them by spore create"}
	}
	return s.o.Builds, nil
}

func (s routes) RequestBuild(w http.ResponseWriter, r *http.Request) {
	var q openapi.RequestBuildJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	name := cmp.Or(q.Name, q.Alias)
	if name == "" {
		refuse(w, "the body, name: a template needs one", seeDocument)
		return
	}
	b, err := s.builder()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	build, err := b.Request(caller(r.Context()), builds.Machine{Name: name, Tags: q.Tags, CPUs: q.CPUCount, MemoryMB: q.MemoryMB, FreeMB: q.MinFreeDiskMb})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id := build.ID.String()
	answer.JSON(w, http.StatusAccepted, openapi.RequestedBuild{TemplateID: id, BuildID: id, Names: build.Names, Aliases: build.Names, Public: true, Tags: notNil(q.Tags)})
}

// withBuild does something with a build of the caller's.
func (s routes) withBuild(w http.ResponseWriter, r *http.Request, templateID, buildID string, do func(*builds.Builds, *builds.Build) error) {
	b, err := s.builder()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	build, err := b.Get(caller(r.Context()), buildID)
	if err == nil && templateID != buildID {
		err = &fleet.Error{Kind: fleet.NotFound, Message: fmt.Sprintf("template %.64s has no build %.64s", templateID, buildID)}
	}
	if err == nil {
		err = do(b, build)
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

func (s routes) StartBuild(w http.ResponseWriter, r *http.Request, templateID, buildID string) {
	var q openapi.StartBuildJSONRequestBody
	if !s.read(w, r, &q) {
		return
	}
	s.withBuild(w, r, templateID, buildID, func(b *builds.Builds, build *builds.Build) error {
		recipe := builds.Recipe{Image: q.FromImage, Template: q.FromTemplate, Start: q.StartCmd, Ready: q.ReadyCmd, Force: q.Force}
		for _, step := range q.Steps {
			recipe.Instructions = append(recipe.Instructions, builds.Instruction{Kind: step.Type, Args: step.Args, Files: step.FilesHash, Force: step.Force})
		}
		if err := b.Start(r.Context(), build, recipe); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	})
}

func (s routes) GetBuildStatus(w http.ResponseWriter, r *http.Request, templateID, buildID string, q openapi.GetBuildStatusParams) {
	s.withBuild(w, r, templateID, buildID, func(_ *builds.Builds, build *builds.Build) error {
		report := build.Report(q.LogsOffset, cmp.Or(q.Limit, defaultBuildLogs), string(q.Level))
		out := openapi.Build{TemplateID: templateID, BuildID: buildID, Status: openapi.BuildStatus(report.Status), Logs: []string{}, LogEntries: []openapi.BuildLogEntry{}}
		for _, e := range report.Logs {
			out.Logs = append(out.Logs, e.Message)
			out.LogEntries = append(out.LogEntries, buildLogEntry(e))
		}
		if report.Status == builds.Failed {
			reason := struct {
				Message string `json:"message"`
				Step    string `json:"step,omitempty,omitzero"`
			}{report.Reason, report.Step}
			out.Reason = &reason
		}
		answer.JSON(w, http.StatusOK, out)
		return nil
	})
}

func (s routes) GetBuildLogs(w http.ResponseWriter, r *http.Request, templateID, buildID string, q openapi.GetBuildLogsParams) {
	s.withBuild(w, r, templateID, buildID, func(_ *builds.Builds, build *builds.Build) error {
		limit, logs := cmp.Or(q.Limit, defaultBuildLogs), []openapi.BuildLogEntry{}
		for _, e := range build.Report(0, maxLogs, string(q.Level)).Logs {
			if e.Time.UnixMilli() > q.Cursor && len(logs) < limit {
				logs = append(logs, buildLogEntry(e))
			}
		}
		answer.JSON(w, http.StatusOK, map[string]any{"logs": logs})
		return nil
	})
}

func buildLogEntry(e fleet.LogEntry) openapi.BuildLogEntry {
	return openapi.BuildLogEntry{Timestamp: e.Time.UTC(), Level: openapi.LogLevel(e.Level), Message: e.Message, Step: e.Fields["step"]}
}

func (s routes) GetUpload(w http.ResponseWriter, r *http.Request, templateID, hash string) {
	s.withBuild(w, r, templateID, templateID, func(b *builds.Builds, build *builds.Build) error {
		out := map[string]any{"present": b.Present(build.Owner, hash)}
		if out["present"] == false {
			scheme := "http"
			if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
				scheme = "https"
			}
			out["url"] = scheme + "://" + r.Host + uploads + b.Link(build.Owner, hash)
		}
		answer.JSON(w, http.StatusCreated, out)
		return nil
	})
}

// receive takes the files of a build. Its link is what permits that.
func (s *Server) receive(w http.ResponseWriter, r *http.Request) {
	rs := routes{s}
	b, err := rs.builder()
	if err == nil {
		r.Body = http.MaxBytesReader(w, r.Body, builds.MaxUpload)
		err = b.Receive(r.PathValue("link"), r.Body)
	}
	if err != nil {
		rs.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}
