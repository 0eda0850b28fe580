// Package block holds layered block images: the memory and the disk of a
// snapshot as a stack of layers, each adding only what changed.
//
// # Words
//
//   - image: Size bytes, seen as blocks of BlockSize (4 KiB, or 2 MiB for
//     memory on huge pages). A snapshot's memfile and rootfs.ext4 are images.
//   - layer: the non-zero blocks that one snapshot adds, packed in the order in
//     which they stand in the image, without their zero blocks.
//   - frame: FrameSize bytes of a layer (the last one may be shorter), the unit
//     that is digested, compressed and verified. Frames lie in the layer's
//     stored bytes one after another, plain or zstd.
//   - run: a stretch of the image that lies in one layer without a break, or a
//     hole, which reads as zeros.
//   - header: the table of contents of an image. It names every layer that the
//     image needs, with all their frames' digests, so that an image opens with
//     one read however many generations stand below it.
//   - diff: a header with gaps between its runs. A gap means "as in the image
//     below". Diffs live in memory only: [Merge] lays one over a base, [Diff]
//     derives one from two headers. A header without gaps is called whole.
//
// # Rules that every header keeps
//
// Runs ascend and never overlap; those of a whole header cover the image
// exactly. Everything is aligned to blocks. Walking the image from start to
// end, the places inside any one layer ascend too, so no stored block is used
// twice: that bounds all work by the header's own size. [Header.Validate]
// holds these rules, and nothing is read through a header that breaks one.
//
// # Encoded header
//
// Fixed integers are little endian; "uvarint" is the unsigned LEB128 of
// encoding/binary in its shortest form.
//
//	 0  8 bytes  magic "sporehdr"
//	 8  u32      format version, 1
//	12  u32      generation: how many ancestors the snapshot has
//	16  u64      block size, bytes
//	24  u64      frame size, bytes
//	32  u64      image size, bytes
//	40  16 bytes snapshot id
//	56  16 bytes parent id, zeros for none
//	72  u32      layer count
//	76  u32      run count
//	80  layers, each: 16 bytes id; uvarint size in blocks; then a frame table:
//	    each frame: u8 codec, 32 bytes digest of the uncompressed bytes and,
//	    unless plain, uvarint stored length
//	    runs, each: uvarint length in blocks; uvarint 0 for a hole or 1 + layer
//	    index; for data, uvarint blocks skipped in that layer since its last run
//
// Frame counts, frame offsets and run offsets follow from the rest and are not
// stored. Nothing may follow the last run. The header carries no checksum: its
// digest stands in the snapshot's metadata.
package block
