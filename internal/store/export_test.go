package store

// At has f called at every point where a crash would leave something half done.
func At(d *Dir, f func(point string)) { d.at = f }
