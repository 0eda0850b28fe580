package fleet

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite" // and the driver of that name
	sqlite3 "modernc.org/sqlite/lib"
)

// schema is what the database of this version holds. Times are nanoseconds since 1970.
const schema = `
CREATE TABLE IF NOT EXISTS sandboxes (
	id      TEXT PRIMARY KEY,
	state   TEXT NOT NULL,
	owner   TEXT NOT NULL,
	started INTEGER NOT NULL,
	ended   INTEGER NOT NULL DEFAULT 0, -- when it died
	record  TEXT NOT NULL               -- JSON, see record
) STRICT;
CREATE INDEX IF NOT EXISTS sandboxes_ended ON sandboxes (ended) WHERE ended > 0;
CREATE TABLE IF NOT EXISTS logs (
	sandbox TEXT NOT NULL,
	at      INTEGER NOT NULL,
	entry   TEXT NOT NULL -- JSON
) STRICT;
CREATE INDEX IF NOT EXISTS logs_sandbox ON logs (sandbox, at);
CREATE TABLE IF NOT EXISTS templates (
	id      TEXT PRIMARY KEY,
	spawned INTEGER NOT NULL,
	last    INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS keys (
	id      TEXT PRIMARY KEY,
	name    TEXT NOT NULL,
	hash    BLOB NOT NULL UNIQUE, -- SHA-256 of the secret, which has 256 random bits
	created INTEGER NOT NULL
) STRICT;
`

// schemaVersion counts the changes of schema. A database of a later version is refused.
const schemaVersion = 1

// database is what the daemon knows after a restart.
type database struct{ db *sql.DB }

// record is a sandbox as the database keeps it: what cannot be asked of its machine or of its snapshot again.
type record struct {
	Info Info
	// Own are the snapshots that it has left behind, oldest first. They go when it does, unless others stand on them.
	Own []uuid.UUID `json:",omitempty"`
	// Pausing is the snapshot that it was about to become: if the daemon dies in between, whether that is there tells whether it sleeps or is dead.
	Pausing uuid.UUID `json:",omitzero"`
}

func openDatabase(ctx context.Context, dir string) (*database, error) {
	path := filepath.Join(dir, "state.db")
	// A crash of this process loses nothing; one of the host may lose the last moments, in which no sandbox survived either.
	options := url.Values{"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(10000)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+options.Encode())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	d := &database{db}
	if err := d.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), db.Close())
	}
	return d, nil
}

func (d *database) migrate(ctx context.Context) error {
	var version int
	if err := d.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > schemaVersion {
		return fmt.Errorf("it is of a later version of spore (%d, this one knows %d)", version, schemaVersion)
	}
	if _, err := d.db.ExecContext(ctx, schema); err != nil {
		return err
	}
	_, err := d.db.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion))
	return err
}

func (d *database) close() error { return d.db.Close() }

// put writes a sandbox down.
func (d *database) put(ctx context.Context, r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	ended := int64(0)
	if r.Info.State == Dead {
		ended = time.Now().UnixNano()
	}
	_, err = d.db.ExecContext(ctx, `INSERT INTO sandboxes (id, state, owner, started, ended, record) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, ended = excluded.ended, record = excluded.record`,
		r.Info.ID, r.Info.State, r.Info.Owner, r.Info.Started.UnixNano(), ended, string(text))
	if err != nil {
		return fmt.Errorf("writing sandbox %s down: %w", r.Info.ID, noSpace(err))
	}
	return nil
}

// noSpace has an error of a full disk be unix.ENOSPC, as it is everywhere else.
func noSpace(err error) error {
	if e := (*sqlite.Error)(nil); errors.As(err, &e) && e.Code() == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%w: %w", unix.ENOSPC, err)
	}
	return err
}

// all reads every sandbox.
func (d *database) all(ctx context.Context) ([]record, error) {
	rows, err := d.db.QueryContext(ctx, "SELECT record FROM sandboxes")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []record
	for rows.Next() {
		var text string
		var r record
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// forget drops the dead that ended before a time, and returns who they were.
func (d *database) forget(ctx context.Context, before time.Time) ([]string, error) {
	rows, err := d.db.QueryContext(ctx, "DELETE FROM sandboxes WHERE ended > 0 AND ended < ? RETURNING id", before.UnixNano())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if _, err := d.db.ExecContext(ctx, "DELETE FROM logs WHERE sandbox = ?", id); err != nil {
			return ids, err
		}
	}
	return ids, nil
}

// spawned counts a sandbox that was made from a template.
func (d *database) spawned(ctx context.Context, template uuid.UUID) error {
	_, err := d.db.ExecContext(ctx, `INSERT INTO templates (id, spawned, last) VALUES (?, 1, ?)
		ON CONFLICT (id) DO UPDATE SET spawned = spawned + 1, last = excluded.last`, template.String(), time.Now().UnixNano())
	return err
}

// spawnCount is how often, and when last, sandboxes were made from a template.
type spawnCount struct {
	n    int64
	last time.Time
}

func (d *database) spawnCounts(ctx context.Context) (map[uuid.UUID]spawnCount, error) {
	rows, err := d.db.QueryContext(ctx, "SELECT id, spawned, last FROM templates")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[uuid.UUID]spawnCount{}
	for rows.Next() {
		var text string
		var n, last int64
		if err := rows.Scan(&text, &n, &last); err != nil {
			return nil, err
		}
		if id, err := uuid.Parse(text); err == nil {
			counts[id] = spawnCount{n, time.Unix(0, last)}
		}
	}
	return counts, rows.Err()
}
