package pager

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/pager/pagertest"
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

// Whoever says something wrong would wait for its memory forever.
func TestMalformedMessages(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	l.acquire(i, "keeps the pager")
	zero, two, many := 0, 2, 200
	whole := "[" + regionText(4096, 4096, 0, 4096) + "]"
	hellos := map[string]struct {
		pagertest.Hello
		why string
	}{
		"no descriptor":    {pagertest.Hello{Descriptors: &zero}, "0 descriptors"},
		"two descriptors":  {pagertest.Hello{Descriptors: &two}, "2 descriptors"},
		"many descriptors": {pagertest.Hello{Descriptors: &many}, "too many"},
		"another file":     {pagertest.Hello{NoUffd: true}, `not a userfaultfd`},
		"two in a bad one": {pagertest.Hello{Descriptors: &two, Raw: new(string)}, ""},
	}
	object := whole[1 : len(whole)-1]
	hellos["two in a bad one"] = struct {
		pagertest.Hello
		why string
	}{pagertest.Hello{Descriptors: &two, Raw: &object}, "not a JSON array"}
	for _, name := range []string{"object", "short", "one byte", "huge", "overlapping memory", "unaligned base", "beyond the image"} {
		text := badHandshakes[name][0]
		hellos[name] = struct {
			pagertest.Hello
			why string
		}{pagertest.Hello{Raw: &text}, badHandshakes[name][1]}
	}
	for name, h := range hellos {
		t.Run(name, func(t *testing.T) {
			h.Path = l.acquire(i, name)
			c := l.client(i)
			_ = c.Hello(h.Hello) // it may be killed before it can answer
			l.dies(c)
			l.fails(name, h.why)
			l.release(name)
		})
	}
	check(t, l.fork(i, "a"), i.all(1, 2))
}

// asNobody has a command run as another user, from a copy that this can read.
func asNobody(t *testing.T, l *lab) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start processes as another user")
	}
	data, err := os.ReadFile(exe(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	path := filepath.Join(dir, "client")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := l.command()
	cmd.Path, cmd.Dir = path, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestWrongUser(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	whole := pagertest.Region{Size: mib, PageSize: 4 << 10}
	path := l.acquire(i, "a")
	wrong := l.clientOf(asNobody(t, l), whole)
	if err := wrong.Hello(pagertest.Hello{Path: path}); err == nil {
		t.Error("the socket lets others connect")
	}
	// If that were not so, it would be asked who it is.
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := wrong.Hello(pagertest.Hello{Path: path}); err != nil && !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	check(t, c, i.all(1, 2))
	select {
	case <-wrong.Ended():
		t.Error("another user's process was killed")
	case f := <-l.failed:
		t.Errorf("fork %s has failed: %v", f.fork, f.err)
	default:
	}
}

// A VMM that runs as a user of its own, as a jailer has it.
func TestUserOfItsOwn(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	cmd := asNobody(t, l)
	path, err := l.Acquire(t.Context(), i.dir, Fork{ID: "a", UID: 65534})
	if err != nil {
		t.Fatal(err)
	}
	c := l.clientOf(cmd, pagertest.Region{Size: mib, PageSize: 4 << 10})
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	all := i.all(1, 2)
	all.Expect = "" // it can't read the file
	check(t, c, all)
	l.release("a")
	l.dies(c)
}

// Others of the same user that connect and say nothing.
func TestSquatters(t *testing.T) {
	l, i := newLab(t), newImage(t, mib, block.WriterOptions{})
	path, nothing := l.acquire(i, "a"), ""
	squatter := l.client(i)
	for range handshakes - 1 {
		if err := squatter.Hello(pagertest.Hello{Path: path, Raw: &nothing}); err != nil {
			t.Fatal(err)
		}
	}
	c := l.client(i)
	if err := c.Hello(pagertest.Hello{Path: path}); err != nil {
		t.Fatal(err)
	}
	check(t, c, i.all(1, 2))
	// The socket is gone: one fork, one machine.
	if err := l.client(i).Hello(pagertest.Hello{Path: path}); err == nil {
		t.Error("a second machine could connect")
	}
	select {
	case <-squatter.Ended():
		t.Error("the silent one was killed")
	default:
	}
}
