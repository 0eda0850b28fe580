package rootfs

// Limits bound what one image may ask for. They are checked as the archive is
// read, before anything is allocated or written on the entry's behalf.
type Limits struct {
	Entries int   // entries of all layers together, whiteouts included
	Bytes   int64 // sum of the files' logical sizes, holes included
	Depth   int   // directories between the root and an entry
	Path    int   // bytes of an entry's path or of a link's target
	Xattrs  int   // bytes of the names and values of one entry's attributes
	Ratio   int64 // uncompressed over compressed bytes of a layer, past RatioSlack
}

// RatioSlack is how many bytes a layer may unpack to before its compression
// ratio is looked at: small layers of zeros are common and harmless.
const RatioSlack = 256 << 20

// maxName is the longest name of a directory entry that Linux file systems keep.
const maxName = 255

// maxHops is how many symbolic links one path may go through; the kernel's own number.
const maxHops = 40

// maxSteps bounds the work of one path's resolution: links in links in links
// can spell a path far longer than any that was written down.
const maxSteps = 8192

// DefaultLimits is generous to real images and far below what would fill a host.
func DefaultLimits() Limits {
	return Limits{
		Entries: 4_000_000,
		Bytes:   64 << 30,
		Depth:   256,
		Path:    4095,
		Xattrs:  4000, // what fits an ext4 attribute block
		Ratio:   300,
	}
}

// WithDefaults fills the fields that are zero.
func (l Limits) WithDefaults() Limits {
	d := DefaultLimits()
	if l.Entries <= 0 {
		l.Entries = d.Entries
	}
	if l.Bytes <= 0 {
		l.Bytes = d.Bytes
	}
	if l.Depth <= 0 {
		l.Depth = d.Depth
	}
	if l.Path <= 0 {
		l.Path = d.Path
	}
	if l.Xattrs <= 0 {
		l.Xattrs = d.Xattrs
	}
	if l.Ratio <= 0 {
		l.Ratio = d.Ratio
	}
	return l
}
