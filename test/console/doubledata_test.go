package console

import (
	"encoding/binary"
	"math"
	"net/http"
	"os"
	"strconv"
	"time"
)

// fill gives the double as much as a small team would have after some days.
func (d *double) fill() {
	node := func(id, parent, kind, name string, age time.Duration, stored int64) *snapshotNode {
		n := &snapshotNode{
			ID: id, Names: []string{}, Parent: parent, Kind: kind, Created: time.Now().Add(-age), StoredBytes: stored, DiskBytes: 1 << 30,
			Image: "docker.io/library/python:3.12-slim",
		}
		if name != "" {
			n.Names = []string{name}
		}
		if kind == "machine" {
			n.MemoryBytes, n.GuestUsed, n.Template = 256<<20, 71<<20, true
			n.Processes = []string{"python3 -m http.server 8000", "/usr/bin/redis-server 127.0.0.1:6379"}
		}
		d.snapshots = append(d.snapshots, n)
		return n
	}
	const hour = time.Hour
	image := node("0b9d3a52-2f0c-4c1e-9a3b-5f0a4e7c1d11", "", "image", "", 96*hour, 118<<20)
	step := node("1c8e4b63-301d-4d2f-8b4c-601b5f8d2e22", image.ID, "step", "", 96*hour, 24<<20)
	python := node("2d7f5c74-412e-4e30-9c5d-712c609e3f33", step.ID, "machine", "python", 95*hour, 63<<20)
	jupyter := node("3e606d85-523f-4f41-8d6e-823d71af4044", python.ID, "machine", "jupyter", 70*hour, 22<<20)
	browser := node("4f717e96-6340-4052-9e7f-934e82b05155", python.ID, "machine", "browser-agent-with-a-long-name", 50*hour, 190<<20)
	tuned := node("50828fa7-7451-4163-8f80-a45f93c16266", jupyter.ID, "machine", "", 30*hour, 9<<20)
	node("61939fb8-8562-4274-9091-b560a4d27377", jupyter.ID, "machine", "jupyter-data", 20*hour, 41<<20)
	alpine := node("72a4a0c9-9673-4385-81a2-c671b5e38488", "", "machine", "alpine", 12*hour, 31<<20)

	d.add(python, 3*hour, 22*time.Minute, map[string]string{"user": "ada", "purpose": "review"})
	d.add(tuned, 95*time.Minute, 4*hour, nil)
	d.add(jupyter, 50*time.Minute, 10*time.Minute, nil)
	d.add(browser, 12*time.Minute, 48*time.Minute, map[string]string{"user": "grace"})
	asleep := d.add(jupyter, 26*hour, time.Hour, map[string]string{"user": "ada"})
	asleep.State = "paused"
	busy := d.add(alpine, 40*time.Second, 14*time.Minute, nil)
	busy.log("warn", "memory is short", "free_mb", "9", "total_mb", "256")
	busy.log("error", "a process was ended for lack of memory", "pid", "312", "command", "python3 train.py --epochs 50 --data /srv/a-rather-long-path/that/goes/on")
	busy.log("debug", "keep-alive", "until", "later")

	for name, content := range map[string][]byte{
		"notes.txt":    []byte("A spore is a frozen machine.\nIt weighs almost nothing while it sleeps.\n"),
		"data.bin":     binary.BigEndian.AppendUint64(nil, 0xdeadbeef00c0ffee),
		"page.html":    []byte("<script>document.title = 'escaped'</script><b>bold</b>\n"),
		"src/main.py":  []byte("print('hello')\n"),
		"a file.md":    []byte("# Title\n"),
		"big/zero.bin": make([]byte, 1<<20),
	} {
		path := d.inHome(name)
		if err := os.MkdirAll(d.inHome("src"), 0o755); err != nil {
			d.t.Fatal(err)
		}
		if err := os.MkdirAll(d.inHome("big"), 0o755); err != nil {
			d.t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
}

// metrics has a gap in it, as of a sandbox that slept.
func (d *double) metrics(_ *sandbox, r *http.Request) (int, any, error) {
	start, err := strconv.ParseInt(r.URL.Query().Get("start"), 10, 64)
	if err != nil {
		return 400, nil, err
	}
	end, err := strconv.ParseInt(r.URL.Query().Get("end"), 10, 64)
	if err != nil {
		return 400, nil, err
	}
	out := []any{}
	step := max(1, (end-start)/120)
	for at := start; at <= end; at += step {
		part := float64(at-start) / float64(end-start)
		if part > 0.45 && part < 0.55 {
			continue
		}
		out = append(out, map[string]any{
			"timestampUnix": at, "timestamp": time.Unix(at, 0).UTC(), "cpuCount": 2, "cpuUsedPct": 35 + 30*math.Sin(part*20) + 8*math.Sin(part*133),
			"memTotal": 256 << 20, "memUsed": (70 + int64(60*part)) << 20, "memCache": (40 + int64(20*math.Cos(part*9))) << 20,
			"diskTotal": 1 << 30, "diskUsed": (210 + int64(90*part)) << 20,
		})
	}
	return 200, out, nil
}

func (d *double) imageMap(r *http.Request) (int, any, error) {
	n := d.find(r.PathValue("id"))
	if n == nil {
		return 0, nil, errNotFound
	}
	artifact, size := r.URL.Query().Get("artifact"), n.DiskBytes
	if artifact == "memfile" {
		size = n.MemoryBytes
	}
	if size == 0 {
		return 0, nil, errNotFound
	}
	var chain []*snapshotNode
	for at := n; at != nil; at = d.find(at.Parent) {
		chain = append([]*snapshotNode{at}, chain...)
	}
	used := make([]int64, len(chain))
	runs := [][3]int64{}
	// Figures that look like chance and are the same each time.
	for at, seed := int64(0), uint64(7); at < size; {
		seed = seed*6364136223846793005 + 1442695040888963407
		length := min(size-at, int64(1+seed>>58)<<17)
		layer := int64((seed>>40)%uint64(2*len(chain))) - int64(len(chain))
		layer = max(-1, layer)
		if layer >= 0 {
			used[layer] += length
		}
		runs = append(runs, [3]int64{at, length, layer})
		at += length
	}
	layers := []any{}
	for i, n := range chain {
		layers = append(layers, map[string]any{"snapshot": n.ID, "used": used[i], "stored": n.StoredBytes})
	}
	return 200, map[string]any{"artifact": artifact, "size": size, "blockSize": 4096, "layers": layers, "runs": runs}, nil
}

func (d *double) diff(r *http.Request) (int, any, error) {
	a, b := d.find(r.PathValue("a")), d.find(r.PathValue("b"))
	if a == nil || b == nil {
		return 0, nil, errNotFound
	}
	region := func(offset, length int64) map[string]int64 {
		return map[string]int64{"offset": offset, "length": length}
	}
	file := func(path, change, kind string, before, after int64, what ...string) map[string]any {
		return map[string]any{"path": path, "change": change, "type": kind, "size_a": before, "size_b": after, "what": what}
	}
	return 200, map[string]any{
		"a": a.ID, "b": b.ID,
		"memory": map[string]any{"size": 256 << 20, "changed": 21 << 20, "zeroed": 3 << 20, "regions": []any{region(40<<20, 12<<20), region(120<<20, 9<<20), region(200<<20, 3<<20)}},
		"disk":   map[string]any{"size": 1 << 30, "changed": 9 << 20, "zeroed": 0, "regions": []any{region(300<<20, 8<<20), region(700<<20, 1<<20)}},
		"files": []any{
			file("/etc/hosts", "changed", "file", 120, 184, "content"), file("/home/user/notebook.ipynb", "added", "file", 0, 48211),
			file("/srv/cache", "added", "dir", 0, 0), file("/tmp/lock", "removed", "file", 12, 0), file("/usr/bin/tool", "changed", "file", 900, 900, "mode", "owner"),
		},
		"processes": []any{
			map[string]any{"change": "added", "pid": 311, "ppid": 1, "uid": 1000, "command": "jupyter lab --no-browser --ip 0.0.0.0"},
			map[string]any{"change": "removed", "pid": 88, "ppid": 1, "uid": 0, "command": "sleep 1000"},
		},
		"metadata": []any{map[string]any{"field": "memory_bytes", "a": "134217728", "b": "268435456"}},
		"notes":    []string{"the times of files are not compared"},
	}, nil
}
