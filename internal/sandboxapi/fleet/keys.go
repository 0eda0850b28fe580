package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// keyPrefix begins every secret, so that one that has leaked is recognised.
const keyPrefix = "spore_"

// Key is an API key, without its secret.
type Key struct {
	ID      string
	Name    string
	Created time.Time
}

// Keys are the API keys of a daemon. The secrets are random and have 256 bits, so a plain hash of each is kept, and finding the hash is comparing the key:
// an index that is looked up by a digest tells an attacker nothing that helps to guess the next bit of the secret.
type Keys struct{ db *database }

// OpenKeys opens the keys in a daemon's state folder, whether or not the daemon runs.
func OpenKeys(ctx context.Context, stateDir string) (*Keys, error) {
	if err := prepareState(stateDir); err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	return &Keys{db}, nil
}

// Close closes keys that were opened by OpenKeys.
func (k *Keys) Close() error { return k.db.close() }

// Keys returns the API keys. They are closed with the fleet.
func (f *Fleet) Keys() *Keys { return &Keys{f.db} }

// Create makes a key. The secret is returned once and not kept.
func (k *Keys) Create(ctx context.Context, name string) (key Key, secret string, err error) {
	if len(name) > 128 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Key{}, "", &Error{Kind: Invalid, Message: "a key's name has at most 128 characters, and no control characters"}
	}
	random := make([]byte, 32)
	rand.Read(random) // never fails, as documented
	secret = keyPrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random))
	key = Key{ID: uuid.NewString()[:8], Name: name, Created: time.Now()}
	hash := sha256.Sum256([]byte(secret))
	_, err = k.db.db.ExecContext(ctx, "INSERT INTO keys (id, name, hash, created) VALUES (?, ?, ?, ?)", key.ID, key.Name, hash[:], key.Created.UnixNano())
	if err != nil {
		return Key{}, "", fmt.Errorf("keeping the key: %w", err)
	}
	return key, secret, nil
}

// List returns all keys, oldest first.
func (k *Keys) List(ctx context.Context) ([]Key, error) {
	rows, err := k.db.db.QueryContext(ctx, "SELECT id, name, created FROM keys ORDER BY created, id")
	if err != nil {
		return nil, fmt.Errorf("reading the keys: %w", err)
	}
	defer rows.Close()
	keys := []Key{}
	for rows.Next() {
		var key Key
		var created int64
		if err := rows.Scan(&key.ID, &key.Name, &created); err != nil {
			return nil, fmt.Errorf("reading the keys: %w", err)
		}
		key.Created = time.Unix(0, created)
		keys = append(keys, key)
	}
	return keys, rows.Err()
}

// Revoke makes a key worthless at once. Its sandboxes go on.
func (k *Keys) Revoke(ctx context.Context, id string) error {
	result, err := k.db.db.ExecContext(ctx, "DELETE FROM keys WHERE id = ?", id)
	if err != nil {
		return fmt.Errorf("revoking the key: %w", err)
	}
	if n, err := result.RowsAffected(); err == nil && n == 0 {
		return &Error{Kind: NotFound, Message: fmt.Sprintf("there is no key %q", id), Hint: "list the keys with: spore key list"}
	}
	return nil
}

// Check returns the key with a secret. The error is of the kind NotFound if there is none.
func (k *Keys) Check(ctx context.Context, secret string) (Key, error) {
	hash := sha256.Sum256([]byte(secret))
	var key Key
	var created int64
	err := k.db.db.QueryRowContext(ctx, "SELECT id, name, created FROM keys WHERE hash = ?", hash[:]).Scan(&key.ID, &key.Name, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return Key{}, &Error{Kind: NotFound, Message: "the API key is not valid", Hint: "make one with: spore key create"}
	}
	if err != nil {
		return Key{}, fmt.Errorf("checking the API key: %w", err)
	}
	key.Created = time.Unix(0, created)
	return key, nil
}
