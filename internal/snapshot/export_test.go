package snapshot

// At has f called at every point of making a flat memory file where a crash would
// leave something half done.
func At(r *Repo, f func(point string)) { r.cache.at = f }

var (
	DecodeSignatures = decodeSignatures
	EncodeSignatures = encodeSignatures
)

// The format of prefetch lists.
var (
	EncodePages = encodePages
	DecodePages = decodePages
)
