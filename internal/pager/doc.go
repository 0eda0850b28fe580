// Package pager serves the memory of a template to the machines that are forked
// from it, page by page, as they touch it.
//
// # Who does what
//
//   - A [Tracker], in the process that runs machines, starts one pager process
//     for each template at its first fork, counts its forks, and ends it with the
//     last. A later fork starts a new one.
//   - A pager, the process whose body is [Serve], listens on a unix socket for
//     each fork. A VMM connects and hands over a userfaultfd and the regions of
//     its memory, as Firecracker does for the memory backend "Uffd". From then on
//     the pager answers its faults, 64 KiB at a time, from an [Image].
//   - Whoever runs the VMM asks [Tracker.Acquire] for the socket, and gives the
//     fork back by [Tracker.Release].
//
// # What can go wrong
//
// A fault that nobody answers hangs its machine; a userfaultfd that everybody has
// closed makes it read zeros. Neither may happen, so both sides fail closed. A
// pager that can't get at a page kills the machine, by the pidfd of the process
// that connected. A Tracker whose pager dies kills the machines that it knows to
// be connected. In both cases Config.Failed hears why.
//
// A Tracker that is started in the place of a dead one takes over what its pagers
// still serve, or ends it: see [Tracker.Adopt].
//
// # Memory
//
// Frames of layers are verified once, into a bounded cache of the process, under
// their digests: forks share what they have in common, and so would two images.
// Below it lies what all pagers of a host share: the kernel's page cache of plain
// layers, and the host's cache of frames from afar, by their digests too.
package pager

// FaultAround is how much is put into a machine's memory at a fault, in bytes:
// a page costs as long as sixteen of them. Memory on larger pages gets one page.
const FaultAround = 64 << 10

// Range is a stretch of an image, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the offset of the first byte after the range.
func (r Range) End() int64 { return r.Offset + r.Length }
