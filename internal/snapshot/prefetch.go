package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// PrefetchFile is the attachment with the pages of memory that a machine touches
// when it wakes, in that order, and with the blocks of the disk that it reads:
//
//	"sporepre", u32 version 1, u32 size of a page (little endian)
//	for each run of pages until the end:
//	    varint distance of its first page from the one after the last run's
//	    uvarint how many pages it has, less one
//
// Pages from 8 TiB on, where no machine has memory, are the disk's blocks: whoever
// knows of memory alone passes them over.
//
// It is advice: one that is not there, or wrong, costs time and nothing else.
const PrefetchFile = "memfile.prefetch"

const (
	prefetchMagic   = "sporepre"
	prefetchVersion = 1
	prefetchHead    = len(prefetchMagic) + 8
	// firstDisk is the page that stands for the first block of the disk.
	firstDisk = int64(8<<40) / block.DefaultBlockSize
	// maxPrefetch bounds the pages of a list: 4 GiB.
	maxPrefetch = 1 << 20
)

// PageRun is neighbouring pages, of 4 KiB each.
type PageRun struct{ First, Count int64 }

// Pages is a list of pages in some order: of memory, or of memory and the disk
// together as WithDisk makes it.
type Pages []PageRun

// WithDisk returns the pages of memory in p, and after them blocks of the disk.
func (p Pages) WithDisk(blocks Pages) Pages {
	both := p.Memory()
	for _, run := range blocks.clip(0, firstDisk) {
		both = append(both, PageRun{run.First + firstDisk, run.Count})
	}
	return both
}

// Memory returns the pages of memory.
func (p Pages) Memory() Pages { return p.clip(0, firstDisk) }

// Disk returns the blocks of the disk, by their numbers there.
func (p Pages) Disk() Pages { return p.clip(firstDisk, 2*firstDisk) }

// clip returns what is in a range, counted from its start.
func (p Pages) clip(start, end int64) Pages {
	var in Pages
	for _, run := range p {
		first, behind := max(run.First, start), min(run.First+run.Count, end)
		if first < behind {
			in = append(in, PageRun{first - start, behind - first})
		}
	}
	return in
}

// Add appends a page.
func (p *Pages) Add(page int64) {
	if n := len(*p); n > 0 && (*p)[n-1].First+(*p)[n-1].Count == page {
		(*p)[n-1].Count++
		return
	}
	*p = append(*p, PageRun{page, 1})
}

// All yields the pages one by one.
func (p Pages) All() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, run := range p {
			for page := run.First; page < run.First+run.Count; page++ {
				if !yield(page) {
					return
				}
			}
		}
	}
}

// Bytes yields offset and length of each run, in bytes.
func (p Pages) Bytes() iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for _, run := range p {
			if !yield(run.First*block.DefaultBlockSize, run.Count*block.DefaultBlockSize) {
				return
			}
		}
	}
}

// Len is how many pages are listed.
func (p Pages) Len() int64 {
	var n int64
	for _, run := range p {
		n += run.Count
	}
	return n
}

// Size is how many bytes that are.
func (p Pages) Size() int64 { return p.Len() * block.DefaultBlockSize }

// And returns the pages of p that other lists too, in the order of p.
func (p Pages) And(other Pages) Pages {
	var in block.Set
	for _, run := range other {
		in.Add(run.First, run.Count)
	}
	var both Pages
	for page := range p.All() {
		if in.Contains(page) {
			both.Add(page)
		}
	}
	return both
}

// encodePages encodes what fits of a list: what comes first matters most.
func encodePages(p Pages) []byte {
	out := binary.LittleEndian.AppendUint32([]byte(prefetchMagic), prefetchVersion)
	out = binary.LittleEndian.AppendUint32(out, block.DefaultBlockSize)
	var next, total int64
	for _, run := range p {
		if total += run.Count; total > maxPrefetch {
			break
		}
		longer := binary.AppendUvarint(binary.AppendVarint(out, run.First-next), uint64(run.Count-1))
		if len(longer) > store.MaxAttachment {
			break
		}
		out, next = longer, run.First+run.Count
	}
	return out
}

// decodePages is the inverse.
func decodePages(data []byte) (Pages, error) {
	switch {
	case len(data) > store.MaxAttachment:
		return nil, fmt.Errorf("it is longer than %d bytes", store.MaxAttachment)
	case len(data) < prefetchHead || string(data[:len(prefetchMagic)]) != prefetchMagic:
		return nil, errors.New("it is no list of pages")
	}
	version, size := binary.LittleEndian.Uint32(data[len(prefetchMagic):]), binary.LittleEndian.Uint32(data[len(prefetchMagic)+4:])
	if version != prefetchVersion || size != block.DefaultBlockSize {
		return nil, fmt.Errorf("version %d with pages of %d bytes is unknown", version, size)
	}
	data = data[prefetchHead:]
	var p Pages
	var next, total int64
	for len(data) > 0 {
		distance, n := binary.Varint(data)
		count, m := binary.Uvarint(data[max(n, 0):])
		const most = block.MaxSize / block.DefaultBlockSize
		if n <= 0 || m <= 0 || distance < -most || distance > most || count >= maxPrefetch {
			return nil, fmt.Errorf("run %d can't be", len(p)+1)
		}
		run := PageRun{next + distance, int64(count) + 1}
		if total += run.Count; run.First < 0 || run.First+run.Count > most || total > maxPrefetch {
			return nil, fmt.Errorf("run %d is outside of any memory, or the list too long", len(p)+1)
		}
		p, next, data = append(p, run), run.First+run.Count, data[n+m:]
	}
	return p, nil
}

// Prefetch returns the pages that a machine touches when it wakes, of memory and of
// the disk; none if nobody knows.
func (r *Repo) Prefetch(ctx context.Context, id uuid.UUID) (Pages, error) {
	data, err := readAll(ctx, r.store, id, PrefetchFile, store.MaxAttachment)
	if errors.Is(err, store.ErrNoArtifact) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	p, err := decodePages(data)
	if err != nil {
		return nil, &CorruptError{ID: id, Artifact: PrefetchFile, Err: err}
	}
	return p, nil
}

// SetPrefetch keeps the pages that a machine touches when it wakes, the first of
// them if there are too many.
func (r *Repo) SetPrefetch(ctx context.Context, id uuid.UUID, p Pages) error {
	return r.store.Attach(ctx, id, PrefetchFile, encodePages(p))
}

// AttachPrefetch puts a list that comes from elsewhere beside a snapshot that has
// none.
func (r *Repo) AttachPrefetch(ctx context.Context, id uuid.UUID, data []byte) error {
	if _, err := decodePages(data); err != nil {
		return &CorruptError{ID: id, Artifact: PrefetchFile, Err: err}
	}
	if p, err := r.Prefetch(ctx, id); p != nil && err == nil {
		return nil
	}
	return r.store.Attach(ctx, id, PrefetchFile, data)
}

// inheritPrefetch gives snapshot id, unless it has one, the list of s, in whose
// memory the same things lie at the same places. That it can't be had is no error.
func (r *Repo) inheritPrefetch(ctx context.Context, id uuid.UUID, s *Snapshot) {
	if data, err := readAll(ctx, s.store, s.meta.ID, PrefetchFile, store.MaxAttachment); err == nil {
		_ = r.AttachPrefetch(ctx, id, data)
	}
}
