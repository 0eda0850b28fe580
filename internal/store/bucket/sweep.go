package bucket

import (
	"context"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/store"
)

// summed counts and digests what goes through it.
type summed struct {
	w    io.Writer
	hash hash.Hash
	size int64
}

// Write implements io.Writer.
func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.hash.Write(p[:n])
	s.size += int64(n)
	return n, err
}

// garbage tells whether nothing leads to an object that is old. folders keeps what
// was learnt of published snapshots.
func (b *Bucket) garbage(ctx context.Context, key string, folders map[uuid.UUID]string) (bool, error) {
	if strings.HasPrefix(key, ".pins/") || strings.HasPrefix(key, ".removing/") {
		lease, err := b.readSmall(ctx, key, maxLeaseSize)
		return err == nil && !lives(lease), err
	}
	dir, rest, _ := strings.Cut(key, "/")
	id, err := uuid.Parse(dir)
	if err != nil || !strings.Contains(rest, "/") {
		return false, nil
	}
	folder, known := folders[id]
	if !known {
		if folder, err = b.folder(ctx, id); err != nil && !errors.Is(err, store.ErrNoSnapshot) {
			return false, err
		}
		folders[id] = folder
	}
	return !strings.HasPrefix(rest, folder+"/"), nil
}
