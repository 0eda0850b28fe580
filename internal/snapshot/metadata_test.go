package snapshot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/snapshot"
)

var update = flag.Bool("update", false, "write the golden files anew")

// full is metadata with every field set.
func full() *snapshot.Metadata {
	digest := func(s string) block.Digest { return block.Sum([]byte(s)) }
	return &snapshot.Metadata{
		Version:     1,
		ID:          uuid.MustParse("33333333-3333-4333-8333-333333333333"),
		Parent:      uuid.MustParse("22222222-2222-4222-8222-222222222222"),
		Origin:      uuid.MustParse("44444444-4444-4444-8444-444444444444"),
		Generation:  2,
		Layers:      []uuid.UUID{uuid.MustParse("11111111-1111-4111-8111-111111111111"), uuid.MustParse("22222222-2222-4222-8222-222222222222")},
		DiskBytes:   1 << 30,
		MemoryBytes: 512 << 20,
		Artifacts: map[string]snapshot.Artifact{
			snapshot.DiskFile:     {Size: 4096},
			snapshot.DiskHeader:   {Size: 200, Digest: digest("disk header")},
			snapshot.MemoryFile:   {Size: 0},
			snapshot.MemoryHeader: {Size: 300, Digest: digest("memory header")},
			snapshot.StateFile:    {Size: 9000, Digest: digest("state")},
		},
		Created:      time.Date(2024, 5, 1, 12, 30, 0, 123456789, time.UTC),
		Kind:         snapshot.KindMachine,
		Arch:         "amd64",
		VCPUs:        2,
		HugePages:    true,
		Net:          "user",
		Engine:       snapshot.Engine{Name: "qemu", Version: "7.2.1", Machine: "microvm", Accel: "tcg"},
		CPU:          snapshot.CPU{Model: "max", Flags: []string{"avx2", "sse4_2"}, TSCKHz: 2_400_000},
		Kernel:       snapshot.Kernel{Version: "6.1.0", Digest: digest("kernel"), Cmdline: "console=ttyS0 quiet"},
		Initramfs:    digest("initramfs"),
		Agent:        "v0.1.0",
		Image:        snapshot.Image{Ref: "apt:bookworm/python3-minimal", Digest: "sha256:00", Packages: []string{"libc6=2.36-9", "python3=3.11.2-1+b1"}},
		Context:      snapshot.Context{User: "user", Workdir: "/srv", Env: map[string]string{"PATH": "/usr/bin", "GREETING": "<hello> & \"bye\" \u2028"}},
		Entrypoint:   []string{"/bin/sh", "-c"},
		Cmd:          []string{"true"},
		StartCommand: "python3 -m http.server >/log 2>&1",
		ReadyCommand: "curl -f localhost:8000",
		Steps:        []snapshot.Step{{Kind: "run", Args: []string{"apt-get update"}}, {Kind: "copy", Args: []string{"a", "/b"}, Hash: "blake3:00"}},
		Labels:       map[string]string{"team": "blue"},
		Processes:    []snapshot.Process{{PID: 40, Parent: 1, UID: 1000, Command: "python3 server.py"}},
	}
}

func TestGolden(t *testing.T) {
	data, err := snapshot.EncodeMetadata(full())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "metadata.json")
	if *update {
		if err := os.WriteFile(golden, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(data)); diff != "" {
		t.Errorf("the format changed, and with it what all older snapshots are read by: %s", diff)
	}
	got, err := snapshot.DecodeMetadata(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full(), got); diff != "" {
		t.Error(diff)
	}
	var anyone map[string]any // other programs read it as plain JSON
	if err := json.Unmarshal(data, &anyone); err != nil || anyone["check"] == nil {
		t.Errorf("as JSON: %v, %v", err, anyone)
	}
}

// TestMetadataDamage flips each bit, and cuts and prolongs the file everywhere.
func TestMetadataDamage(t *testing.T) {
	data, err := snapshot.EncodeMetadata(full())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, at int, damaged []byte) {
		t.Helper()
		if _, err := snapshot.DecodeMetadata(damaged); !errors.Is(err, snapshot.ErrMetadata) {
			t.Fatalf("%s at %d of %d: %v", what, at, len(data), err)
		}
	}
	for i := range data {
		for bit := range 8 {
			damaged := bytes.Clone(data)
			damaged[i] ^= 1 << bit
			refused("bit flipped", i, damaged)
		}
		refused("cut", i, data[:i])
		refused("zeroed from", i, append(bytes.Clone(data[:i]), make([]byte, len(data)-i)...))
		if i > 0 {
			refused("cut before", i, data[i:])
		}
	}
	refused("prolonged", len(data), append(bytes.Clone(data), '\n'))
	refused("too long", 0, make([]byte, snapshot.MaxMetadataSize+1))
}

// reseal encodes changed JSON as metadata.json, with a right "check".
func reseal(t testing.TB, body string) []byte {
	t.Helper()
	body = strings.TrimSuffix(body, "\n}\n")
	return []byte(body + ",\n  \"check\": \"" + block.Sum([]byte(body)).String() + "\"\n}\n")
}

func TestMetadataRules(t *testing.T) {
	tests := []struct {
		name   string
		change func(m *snapshot.Metadata)
		want   string
	}{
		{"no id", func(m *snapshot.Metadata) { m.ID = uuid.Nil }, "no id"},
		{"version", func(m *snapshot.Metadata) { m.Version = 2 }, "version 2"},
		{"own parent", func(m *snapshot.Metadata) { m.Parent = m.ID }, "own parent"},
		{"kind", func(m *snapshot.Metadata) { m.Kind = "" }, "kind"},
		{"arch", func(m *snapshot.Metadata) { m.Arch = "" }, "architecture"},
		{"no disk", func(m *snapshot.Metadata) { m.DiskBytes = 0 }, "disk of 0"},
		{"absurd disk", func(m *snapshot.Metadata) { m.DiskBytes = 1 << 62 }, "disk of"},
		{"negative memory", func(m *snapshot.Metadata) { m.MemoryBytes = -1 }, "memory of -1"},
		{"memory lost", func(m *snapshot.Metadata) { m.MemoryBytes = 0 }, "memory_bytes"},
		{"vcpus", func(m *snapshot.Metadata) { m.VCPUs = -1 }, "-1 vCPUs"},
		{"no vcpus", func(m *snapshot.Metadata) { m.VCPUs = 0 }, "no vcpus"},
		{"no engine", func(m *snapshot.Metadata) { m.Engine.Version = "" }, "engine"},
		{"layers out of order", func(m *snapshot.Metadata) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }, "order"},
		{"layer twice", func(m *snapshot.Metadata) { m.Layers[1] = m.Layers[0] }, "order"},
		{"own layer", func(m *snapshot.Metadata) { m.Layers[1] = m.ID }, "layer"},
		{"artifact missing", func(m *snapshot.Metadata) { delete(m.Artifacts, snapshot.StateFile) }, "lists no snapfile"},
		{"no disk file", func(m *snapshot.Metadata) { delete(m.Artifacts, snapshot.DiskFile) }, "lists no rootfs.ext4"},
		{"foreign artifact", func(m *snapshot.Metadata) { m.Artifacts["../../etc/passwd"] = snapshot.Artifact{} }, "passwd"},
		{"negative size", func(m *snapshot.Metadata) { m.Artifacts[snapshot.DiskFile] = snapshot.Artifact{Size: -1} }, "rootfs.ext4 of -1"},
		{"absurd header", func(m *snapshot.Metadata) {
			a := m.Artifacts[snapshot.DiskHeader]
			a.Size = 1 << 40
			m.Artifacts[snapshot.DiskHeader] = a
		}, "rootfs.ext4.header of"},
		{"header without digest", func(m *snapshot.Metadata) { m.Artifacts[snapshot.DiskHeader] = snapshot.Artifact{Size: 1} }, "digest"},
		{"data with digest", func(m *snapshot.Metadata) {
			m.Artifacts[snapshot.DiskFile] = snapshot.Artifact{Size: 1, Digest: block.Sum(nil)}
		}, "digest"},
		{"not UTF-8", func(m *snapshot.Metadata) { m.Context.Env["A"] = "\xff" }, "UTF-8"},
		{"not UTF-8 step", func(m *snapshot.Metadata) { m.Steps[0].Args[0] = "\xff" }, "UTF-8"},
		{"too long", func(m *snapshot.Metadata) { m.Labels["a"] = strings.Repeat("x", 5<<20) }, "at most"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := full()
			test.change(m)
			_, err := snapshot.EncodeMetadata(m)
			if !errors.Is(err, snapshot.ErrMetadata) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("encoding gave %v, want a word of %q", err, test.want)
			}
		})
	}
}

func TestMetadataDecodeErrors(t *testing.T) {
	golden, err := snapshot.EncodeMetadata(full())
	if err != nil {
		t.Fatal(err)
	}
	body := string(golden[:bytes.Index(golden, []byte(",\n  \"check\""))])
	for name, test := range map[string]struct{ body, want string }{
		"newer version":  {strings.Replace(body, `"version": 1`, `"version": 2`, 1), "use a newer one"},
		"no version":     {strings.Replace(body, `"version": 1`, `"versoin": 1`, 1), "version 0"},
		"no JSON":        {body + "}", "invalid"},
		"other JSON":     {`{"version": 1, "id": 7`, "invalid"},
		"rule":           {strings.Replace(body, `"vcpus": 2`, `"vcpus": -2`, 1), "-2 vCPUs"},
		"unknown member": {body + ",\n  \"later\": 1", ""},
	} {
		_, err := snapshot.DecodeMetadata(reseal(t, test.body))
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, snapshot.ErrMetadata) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func FuzzDecodeMetadata(f *testing.F) {
	golden, err := snapshot.EncodeMetadata(full())
	if err != nil {
		f.Fatal(err)
	}
	disk := full()
	disk.Artifacts = map[string]snapshot.Artifact{snapshot.DiskFile: {}, snapshot.DiskHeader: {Digest: block.Sum(nil)}}
	small, err := snapshot.EncodeMetadata(disk)
	if err != nil {
		f.Fatal(err)
	}
	for _, data := range [][]byte{golden, small, nil, []byte("{}")} {
		f.Add(data, false)
		f.Add(bytes.SplitN(data, []byte(",\n  \"check\""), 2)[0], true)
	}
	f.Fuzz(func(t *testing.T, data []byte, sealed bool) {
		if sealed { // else nothing gets past the check
			data = reseal(t, string(data))
		}
		m, err := snapshot.DecodeMetadata(data)
		if err != nil {
			if !errors.Is(err, snapshot.ErrMetadata) {
				t.Errorf("error %v is not ErrMetadata", err)
			}
			return
		}
		again, err := snapshot.EncodeMetadata(m)
		if err != nil {
			t.Fatalf("what was decoded can't be encoded: %v", err)
		}
		back, err := snapshot.DecodeMetadata(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, back); diff != "" {
			t.Error(diff)
		}
	})
}

// TestOldMetadata reads what earlier programs wrote.
func TestOldMetadata(t *testing.T) {
	data, err := os.ReadFile("testdata/metadata-cachekey.json") // has a field that is no more
	if err != nil {
		t.Fatal(err)
	}
	m, err := snapshot.DecodeMetadata(data)
	if err != nil || m.Labels["team"] != "blue" || !bytes.Contains(data, []byte(`"cache_key"`)) {
		t.Errorf("%+v, %v", m, err)
	}
}
