package fleet

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"
)

// maxLogs is how many entries of a sandbox are kept, and given out at once.
const maxLogs = 1000

// Logs returns what happened to a sandbox from a time on: at most limit entries, the oldest or else the youngest first. A dead one has logs too.
func (f *Fleet) Logs(ctx context.Context, id string, after time.Time, limit int, oldestFirst bool) ([]LogEntry, error) {
	if _, err := f.entry(id); err != nil {
		return nil, err
	}
	f.scribe.flush()
	if limit <= 0 || limit > maxLogs {
		limit = maxLogs
	}
	order := "DESC"
	if oldestFirst {
		order = "ASC"
	}
	since := int64(0)
	if !after.IsZero() {
		since = after.UnixNano()
	}
	rows, err := f.db.db.QueryContext(ctx, "SELECT entry FROM logs WHERE sandbox = ? AND at >= ? ORDER BY at "+order+", rowid "+order+" LIMIT ?", id, since, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	entries := []LogEntry{}
	for rows.Next() {
		var text string
		var e LogEntry
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// note writes down what happened to a sandbox, for its owner, and logs it, for the operator. It never fails what it tells of.
func (f *Fleet) note(id string, level slog.Level, message string, fields map[string]string) {
	attrs := []any{"sandbox", id}
	for k, v := range fields {
		attrs = append(attrs, k, v)
	}
	f.o.Log.Log(context.Background(), level, message, attrs...)
	f.keep(id, level, message, fields)
}

// keep writes down what happened to a sandbox, for its owner alone.
func (f *Fleet) keep(id string, level slog.Level, message string, fields map[string]string) {
	names := map[slog.Level]string{slog.LevelDebug: "debug", slog.LevelInfo: "info", slog.LevelWarn: "warn", slog.LevelError: "error"}
	e := LogEntry{Time: time.Now().UTC(), Level: names[level], Message: message, Fields: fields}
	f.scribe.write(func() {
		text, err := json.Marshal(e)
		if err == nil {
			_, err = f.db.db.Exec("INSERT INTO logs (sandbox, at, entry) VALUES (?, ?, ?)", id, e.Time.UnixNano(), string(text))
		}
		if err != nil {
			f.o.Log.Warn("a log entry could not be kept", "sandbox", id, "error", err)
		}
	})
}

// trim drops what is too old of a sandbox's log, now that it does not run.
func (f *Fleet) trim(ctx context.Context, id string) {
	f.scribe.write(func() {
		if err := f.db.trimLogs(context.WithoutCancel(ctx), id); err != nil {
			f.o.Log.Warn("trimming a log", "sandbox", id, "error", err)
		}
	})
}

// trimLogs drops all but a sandbox's youngest entries.
func (d *database) trimLogs(ctx context.Context, id string) error {
	_, err := d.db.ExecContext(ctx, `DELETE FROM logs WHERE sandbox = ? AND rowid NOT IN (SELECT rowid FROM logs WHERE sandbox = ? ORDER BY at DESC, rowid DESC LIMIT ?)`, id, id, maxLogs)
	return err
}
