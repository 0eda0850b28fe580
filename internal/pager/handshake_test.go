package pager

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const mib = 1 << 20

func regionText(base, size, offset, pageSize uint64) string {
	return fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":%d,"page_size_kib":%[4]d}`, base, size, offset, pageSize)
}

// badHandshakes are messages that are refused, each with a part of the reason.
var badHandshakes = map[string][2]string{
	"empty array":        {`[]`, "no regions"},
	"object":             {regionText(0, 4096, 0, 4096), "not a JSON array"},
	"object with array":  {`{"mappings":[]}`, "not a JSON array"},
	"number":             {`1`, "not a JSON array"},
	"no JSON":            {`hello`, "not a JSON array"},
	"blank":              {` `, "not a JSON array"},
	"short":              {`[` + regionText(0, 4096, 0, 4096), "EOF"},
	"shorter":            {`[{"base_host_virt_addr":140737,"si`, "EOF"},
	"one byte":           {`[`, "EOF"},
	"two arrays":         {`[` + regionText(0, 4096, 0, 4096) + `][]`, "follows"},
	"text after":         {`[` + regionText(0, 4096, 0, 4096) + `] x`, "follows"},
	"not objects":        {`[1,2]`, "region 0"},
	"null":               {`[null]`, "lacks"},
	"negative":           {`[{"base_host_virt_addr":-4096,"size":4096,"offset":0,"page_size":4096}]`, "region 0"},
	"fraction":           {`[{"base_host_virt_addr":0,"size":4096.5,"offset":0,"page_size":4096}]`, "region 0"},
	"text for a number":  {`[{"base_host_virt_addr":"0","size":4096,"offset":0,"page_size":4096}]`, "region 0"},
	"no base":            {`[{"size":4096,"offset":0,"page_size":4096}]`, "lacks"},
	"no size":            {`[{"base_host_virt_addr":0,"offset":0,"page_size":4096}]`, "lacks"},
	"no offset":          {`[{"base_host_virt_addr":0,"size":4096,"page_size":4096}]`, "lacks"},
	"no page size":       {`[{"base_host_virt_addr":0,"size":4096,"offset":0}]`, "lacks"},
	"two page sizes":     {`[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096,"page_size_kib":4}]`, "page_size_kib says 4"},
	"page size":          {`[` + regionText(0, 8192, 0, 8192) + `]`, "pages of 8192"},
	"page size 0":        {`[` + regionText(0, 8192, 0, 0) + `]`, "pages of 0"},
	"empty region":       {`[` + regionText(0, 0, 0, 4096) + `]`, "empty"},
	"unaligned base":     {`[` + regionText(100, 4096, 0, 4096) + `]`, "aligned"},
	"unaligned size":     {`[` + regionText(0, 4097, 0, 4096) + `]`, "aligned"},
	"unaligned offset":   {`[` + regionText(0, 4096, 1, 4096) + `]`, "aligned"},
	"unaligned huge":     {`[` + regionText(4096, 2*mib, 0, 2*mib) + `]`, "aligned"},
	"beyond the image":   {`[` + regionText(0, mib, mib, 4096) + `]`, "of an image of 1048576"},
	"larger than it":     {`[` + regionText(0, mib+4096, 0, 4096) + `]`, "of an image of 1048576"},
	"offset wraps":       {`[` + regionText(0, 8192, 1<<64-4096, 4096) + `]`, "of an image of 1048576"},
	"address wraps":      {`[` + regionText(1<<64-4096, 8192, 0, 4096) + `]`, "beyond the end of memory"},
	"overlapping memory": {`[` + regionText(0, 8192, 0, 4096) + `,` + regionText(4096, 4096, 65536, 4096) + `]`, "share the memory"},
	"overlapping image":  {`[` + regionText(0, 8192, 0, 4096) + `,` + regionText(1<<20, 4096, 4096, 4096) + `]`, "share the image"},
	"the same twice":     {`[` + regionText(0, 4096, 0, 4096) + `,` + regionText(0, 4096, 0, 4096) + `]`, "share"},
	"many regions":       {`[` + strings.Repeat(regionText(0, 4096, 0, 4096)+",", maxRegions) + regionText(0, 4096, 0, 4096) + `]`, "more than 64 regions"},
	"huge":               {`[` + strings.Repeat(" ", 100<<10) + `]`, "longer than"},
	"deep":               {`[` + strings.Repeat("[", 10000), ""},
}

func TestBadHandshakesAreRefused(t *testing.T) {
	for name, c := range badHandshakes {
		if _, err := parseRegions([]byte(c[0]), mib, 4096); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want …%s…", name, err, c[1])
		}
	}
}

func TestGoodHandshakes(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []region
	}{
		"two":              {`[` + regionText(8192, 4096, 4096, 4096) + `,` + regionText(4096, 4096, 0, 4096) + `]`, []region{{4096, 4096, 0, 4096}, {8192, 4096, 4096, 4096}}},
		"an old VMM's":     {`[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size_kib":4096}]`, []region{{0, 4096, 0, 4096}}},
		"a newer VMM's":    {` [{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096,"colour":{"a":[1]}}] ` + "\n", []region{{0, 4096, 0, 4096}}},
		"no huge metadata": {`[` + regionText(1<<47-4096, 4096, mib-4096, 4096) + `]`, []region{{1<<47 - 4096, 4096, mib - 4096, 4096}}},
	} {
		got, err := parseRegions([]byte(c.text), mib, 4096)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// What is accepted keeps the rules that everything after relies on.
func FuzzHandshake(f *testing.F) {
	for _, c := range badHandshakes {
		f.Add([]byte(c[0]))
	}
	f.Add([]byte(`[` + regionText(8192, 4096, 4096, 4096) + `,` + regionText(4096, 4096, 0, 4096) + `]`))
	f.Add([]byte(`[` + regionText(2*mib, 2*mib, 2*mib, 2*mib) + `]`))
	f.Fuzz(func(t *testing.T, message []byte) {
		const size = 64 * mib
		regions, err := parseRegions(message, size, 4096)
		if err != nil {
			return
		}
		if len(regions) == 0 || len(regions) > maxRegions || len(message) > maxHandshake {
			t.Fatalf("%d regions of %d bytes", len(regions), len(message))
		}
		l := layout(regions)
		for i, r := range regions {
			if r.size == 0 || r.offset+r.size > size || r.end() <= r.base || (i > 0 && regions[i-1].end() > r.base) {
				t.Fatalf("%+v", regions)
			}
			for _, at := range []uint64{0, r.size - 1, r.size / 2} {
				got, ok := l.find(r.base + at)
				if !ok || got != r {
					t.Fatalf("%#x is in %+v, not in %+v", r.base+at, got, r)
				}
				if got, ok := l.at(int64(r.offset + at)); !ok || got != r {
					t.Fatalf("%d of the image is in %+v, not in %+v", r.offset+at, got, r)
				}
			}
			if _, ok := l.find(r.end()); ok && (i == len(regions)-1 || regions[i+1].base != r.end()) {
				t.Fatalf("%#x is in a region", r.end())
			}
		}
	})
}

// Windows tile a region: each place is in the window of each other place of it.
func TestWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pageSize := rapid.SampledFrom([]uint64{4 << 10, hugePage}).Draw(t, "page size")
		r := region{
			base: rapid.Uint64Range(0, 100).Draw(t, "base") * pageSize, size: rapid.Uint64Range(1, 100).Draw(t, "size") * pageSize,
			offset: rapid.Uint64Range(0, 100).Draw(t, "offset") * pageSize, pageSize: pageSize,
		}
		at := int64(r.offset + rapid.Uint64Range(0, r.size-1).Draw(t, "at"))
		w := r.around(at)
		if w.Offset > at || w.End() <= at || w.Offset < int64(r.offset) || w.End() > int64(r.offset+r.size) {
			t.Fatalf("the window of %d in %+v is %+v", at, r, w)
		}
		if w.Length > int64(max(FaultAround, pageSize)) || uint64(w.Length)%pageSize != 0 || w.address(w.Offset)%pageSize != 0 {
			t.Fatalf("the window of %d in %+v is %+v", at, r, w)
		}
		if other := r.around(rapid.Int64Range(w.Offset, w.End()-1).Draw(t, "other")); other.Range != w.Range {
			t.Fatalf("windows %+v and %+v overlap", w, other)
		}
	})
}
