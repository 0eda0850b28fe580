package snapshot

import "context"

// At has f called at every point of making a flat memory file where a crash would
// leave something half done.
func At(r *Repo, f func(point string)) { r.cache.at = f }

// CacheLimit bounds what flat memory files that no machine uses may take up on
// disk, in bytes.
func CacheLimit(bytes int64) Option { return func(r *Repo) { r.cache.limit = bytes } }

// TrimCache removes flat memory files as making a new one does, down to limit bytes
// on disk.
func (r *Repo) TrimCache(ctx context.Context, limit int64) (int64, error) {
	return r.cache.evict(ctx, limit)
}

var (
	DecodeSignatures = decodeSignatures
	EncodeSignatures = encodeSignatures
)

// The format of prefetch lists.
var (
	EncodePages = encodePages
	DecodePages = decodePages
)
