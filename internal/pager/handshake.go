package pager

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// Limits of what a machine says when it connects.
const (
	maxHandshake = 32 << 10 // bytes
	maxRegions   = 64
	hugePage     = 2 << 20
)

// region is a stretch of a machine's memory that is backed by the image.
type region struct {
	base     uint64 // address in the machine's process
	size     uint64
	offset   uint64 // in the image
	pageSize uint64
}

func (r region) end() uint64 { return r.base + r.size }

// parseRegions reads the message of a machine whose memory is an image of size
// bytes: a bare JSON array of objects. Fields that are not known are passed over,
// since newer VMMs say more. The regions come sorted by address. pageSize is that
// of the kernel.
func parseRegions(message []byte, size int64, pageSize uint64) ([]region, error) {
	if len(message) > maxHandshake {
		return nil, fmt.Errorf("it is longer than the %d bytes that are allowed", maxHandshake)
	}
	if trimmed := bytes.TrimLeft(message, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '[' {
		return nil, errors.New("it is not a JSON array")
	}
	decoder := json.NewDecoder(bytes.NewReader(message))
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	var regions []region
	for decoder.More() {
		if len(regions) == maxRegions {
			return nil, fmt.Errorf("it has more than %d regions", maxRegions)
		}
		r, err := parseRegion(decoder, size, pageSize)
		if err != nil {
			return nil, fmt.Errorf("region %d: %w", len(regions), err)
		}
		regions = append(regions, r)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("reading it: %w", noEOF(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the array")
	}
	if len(regions) == 0 {
		return nil, errors.New("it has no regions")
	}
	return regions, sortRegions(regions)
}

// noEOF says that a message ends too early: the end of a file is not what it is about.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parseRegion(decoder *json.Decoder, size int64, pageSize uint64) (region, error) {
	var said struct {
		Base     *uint64 `json:"base_host_virt_addr"`
		Size     *uint64 `json:"size"`
		Offset   *uint64 `json:"offset"`
		PageSize *uint64 `json:"page_size"`
		Old      *uint64 `json:"page_size_kib"` // bytes, for all its name; older VMMs have nothing else
	}
	if err := decoder.Decode(&said); err != nil {
		return region{}, noEOF(err)
	}
	if said.PageSize == nil {
		said.PageSize = said.Old
	}
	if said.Base == nil || said.Size == nil || said.Offset == nil || said.PageSize == nil {
		return region{}, errors.New("it lacks one of base_host_virt_addr, size, offset and page_size")
	}
	if said.Old != nil && *said.Old != *said.PageSize {
		return region{}, fmt.Errorf("page_size is %d, page_size_kib says %d", *said.PageSize, *said.Old)
	}
	r := region{base: *said.Base, size: *said.Size, offset: *said.Offset, pageSize: *said.PageSize}
	switch {
	case r.pageSize != pageSize && r.pageSize != hugePage:
		return r, fmt.Errorf("pages of %d bytes: need %d or %d", r.pageSize, pageSize, hugePage)
	case r.size == 0:
		return r, errors.New("it is empty")
	case (r.base|r.size|r.offset)%r.pageSize != 0:
		return r, fmt.Errorf("%d bytes at %#x, at %d of the image: not aligned to pages of %d", r.size, r.base, r.offset, r.pageSize)
	case r.size > uint64(size) || r.offset > uint64(size)-r.size:
		return r, fmt.Errorf("%d bytes at %d of an image of %d", r.size, r.offset, size)
	case r.base+r.size < r.base:
		return r, fmt.Errorf("%d bytes at %#x: beyond the end of memory", r.size, r.base)
	}
	return r, nil
}

// sortRegions sorts by address and refuses regions that share memory or image.
func sortRegions(regions []region) error {
	byOffset := slices.Clone(regions)
	sort.Slice(byOffset, func(i, j int) bool { return byOffset[i].offset < byOffset[j].offset })
	sort.Slice(regions, func(i, j int) bool { return regions[i].base < regions[j].base })
	for i := 1; i < len(regions); i++ {
		if regions[i-1].end() > regions[i].base {
			return fmt.Errorf("two regions share the memory at %#x", regions[i].base)
		}
		if before := byOffset[i-1]; before.offset+before.size > byOffset[i].offset {
			return fmt.Errorf("two regions share the image at %d", byOffset[i].offset)
		}
	}
	return nil
}

// layout finds places in regions, which are sorted by address.
type layout []region

// find returns the region that an address is in.
func (l layout) find(address uint64) (region, bool) {
	i := sort.Search(len(l), func(i int) bool { return l[i].end() > address })
	if i == len(l) || l[i].base > address {
		return region{}, false
	}
	return l[i], true
}

// at returns the region that a place of the image is in.
func (l layout) at(offset int64) (region, bool) {
	for _, r := range l {
		if uint64(offset) >= r.offset && uint64(offset)-r.offset < r.size {
			return r, true
		}
	}
	return region{}, false
}

// window is what is filled at once: part of one region.
type window struct {
	region region
	Range        // of the image
	focus  int64 // the place in it that was touched
}

// address is where a place of the image, which is in the window's region, lies.
func (w window) address(offset int64) uint64 { return w.region.base + uint64(offset) - w.region.offset }

// around returns the window of a place in the image, which is in region r: a page,
// or what lies between two multiples of FaultAround.
func (r region) around(offset int64) window {
	w := window{region: r, focus: offset}
	start, step := int64(0), int64(FaultAround)
	if r.pageSize > FaultAround {
		start, step = int64(r.offset), int64(r.pageSize) // pages count from the region's start
	}
	w.Offset = start + (offset-start)/step*step
	end := min(w.Offset+step, int64(r.offset+r.size))
	w.Offset = max(w.Offset, int64(r.offset))
	w.Length = end - w.Offset
	return w
}
