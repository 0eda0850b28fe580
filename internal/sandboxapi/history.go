package sandboxapi

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

// Limits of what is told of the past.
const (
	defaultLogs = 1000
	maxLogs     = 10_000 // entries that are looked through
	recently    = time.Minute
)

func (s routes) GetMetrics(w http.ResponseWriter, r *http.Request, id string, q openapi.GetMetricsParams) {
	s.with(w, r, id, func(fleet.Info) error {
		var since, until time.Time
		if q.Start > 0 {
			since = time.Unix(q.Start, 0)
		}
		if q.End > 0 {
			until = time.Unix(q.End, 0)
		}
		metrics, err := s.o.Sandboxes.Metrics(r.Context(), id, since, until)
		if err != nil {
			return err
		}
		out := make([]openapi.SandboxMetric, len(metrics))
		for i, m := range metrics {
			out[i] = metric(m)
		}
		answer.JSON(w, http.StatusOK, out)
		return nil
	})
}

func (s routes) ListMetrics(w http.ResponseWriter, r *http.Request, q openapi.ListMetricsParams) {
	latest := map[string]openapi.SandboxMetric{}
	for _, id := range q.SandboxIds {
		info, err := s.sandbox(r.Context(), id)
		if err != nil || info.State != fleet.Running {
			continue
		}
		metrics, err := s.o.Sandboxes.Metrics(r.Context(), id, time.Now().Add(-recently), time.Time{})
		if err == nil && len(metrics) > 0 {
			latest[id] = metric(metrics[len(metrics)-1])
		}
	}
	answer.JSON(w, http.StatusOK, map[string]any{"sandboxes": latest})
}

// withLogs is with for what can be told of the dead, too: to those who see everybody's sandboxes, for nobody remembers whose they were.
func (s routes) withLogs(w http.ResponseWriter, r *http.Request, id string, do func(fleet.Info) error) {
	if _, err := s.sandbox(r.Context(), id); fleet.KindOf(err) == fleet.Gone && caller(r.Context()) == "" {
		if err := do(fleet.Info{}); err != nil {
			s.fail(w, r, err)
		}
		return
	}
	s.with(w, r, id, do)
}

func (s routes) GetLogsV1(w http.ResponseWriter, r *http.Request, id string, q openapi.GetLogsV1Params) {
	s.withLogs(w, r, id, func(fleet.Info) error {
		limit := q.Limit
		if limit == 0 {
			limit = defaultLogs
		}
		entries, err := s.o.Sandboxes.Logs(r.Context(), id, fromMilliseconds(q.Start), limit, true)
		if err != nil {
			return err
		}
		type line struct {
			Timestamp time.Time `json:"timestamp"`
			Line      string    `json:"line"`
		}
		out := struct {
			Logs    []line             `json:"logs"`
			Entries []openapi.LogEntry `json:"logEntries"`
		}{make([]line, len(entries)), make([]openapi.LogEntry, len(entries))}
		for i, e := range entries {
			out.Logs[i], out.Entries[i] = line{e.Time.UTC(), e.Message}, logEntry(e)
		}
		answer.JSON(w, http.StatusOK, out)
		return nil
	})
}

func (s routes) GetLogs(w http.ResponseWriter, r *http.Request, id string, q openapi.GetLogsParams) {
	s.withLogs(w, r, id, func(fleet.Info) error {
		limit := q.Limit
		if limit == 0 {
			limit = defaultLogs
		}
		backward := q.Direction == openapi.Backward
		after := fromMilliseconds(q.Cursor)
		if backward {
			after = time.Time{} // the cursor is where to begin, and that is the end
		}
		entries, err := s.o.Sandboxes.Logs(r.Context(), id, after, maxLogs, !backward)
		if err != nil {
			return err
		}
		out := []openapi.LogEntry{}
		for _, e := range entries {
			if len(out) == limit {
				break
			}
			if backward && q.Cursor > 0 && e.Time.UnixMilli() >= q.Cursor || !wanted(e, q) {
				continue
			}
			out = append(out, logEntry(e))
		}
		answer.JSON(w, http.StatusOK, map[string]any{"logs": out})
		return nil
	})
}

// wanted tells whether an entry is of the level and has the words that were asked for.
func wanted(e fleet.LogEntry, q openapi.GetLogsParams) bool {
	levels := []openapi.LogLevel{openapi.LogLevelDebug, openapi.LogLevelInfo, openapi.LogLevelWarn, openapi.LogLevelError}
	return slices.Index(levels, openapi.LogLevel(e.Level)) >= slices.Index(levels, q.Level) && strings.Contains(e.Message, q.Search)
}

func fromMilliseconds(n int64) time.Time {
	if n <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(n)
}
