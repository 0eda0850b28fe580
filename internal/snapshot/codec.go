package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// Limits on what metadata.json may say.
const (
	MaxMetadataSize = 4 << 20   // bytes of metadata.json
	MaxStateSize    = 256 << 20 // bytes of a snapfile
	MaxProcesses    = 512
	MaxCommand      = 1 << 10 // bytes of a process's command
)

// ErrMetadata is wrapped by every error about metadata that breaks a rule.
var ErrMetadata = errors.New("invalid metadata")

// errNewer is wrapped by errors about metadata of a later program's.
var errNewer = errors.New("use a newer one")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMetadata}, args...)...)
}

// metadata.json carries its own digest, because nothing else is there to vouch
// for it: its last member, "check", is the digest of all bytes before that
// member's comma. So its end always reads
//
//	,
//	  "check": "blake3:<64 hexadecimal digits>"
//	}
//
// and one flipped bit anywhere is told.
const (
	checkStart = ",\n  \"check\": \""
	checkEnd   = "\"\n}\n"
	checkSize  = len(checkStart) + len("blake3:") + 2*block.DigestSize + len(checkEnd)
)

// EncodeMetadata returns the content of metadata.json. Errors wrap ErrMetadata.
func EncodeMetadata(m *Metadata) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(m); err != nil {
		return nil, invalid("%w", err)
	}
	body := bytes.TrimSuffix(b.Bytes(), []byte("\n}\n"))
	data := slices.Concat(body, []byte(checkStart), []byte(block.Sum(body).String()), []byte(checkEnd))
	if len(data) > MaxMetadataSize {
		return nil, invalid("it takes %d bytes, at most %d are allowed", len(data), MaxMetadataSize)
	}
	return data, nil
}

// DecodeMetadata reads the content of metadata.json, which need not be trusted.
// The metadata that it returns is valid. Errors wrap ErrMetadata.
func DecodeMetadata(data []byte) (*Metadata, error) {
	if len(data) > MaxMetadataSize {
		return nil, invalid("it has %d bytes, at most %d are allowed", len(data), MaxMetadataSize)
	}
	if err := checkDigest(data); err != nil {
		return nil, err
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, invalid("%w", err)
	}
	if version.Version < 1 || version.Version > FormatVersion {
		return nil, invalid("it has format version %d, this program reads 1 to %d: %w", version.Version, FormatVersion, errNewer)
	}
	m := new(Metadata)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, invalid("%w", err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func checkDigest(data []byte) error {
	if len(data) == 0 {
		return invalid("it is empty")
	}
	if len(data) < checkSize {
		return invalid("it is cut off after %d bytes", len(data))
	}
	body, end := data[:len(data)-checkSize], data[len(data)-checkSize:]
	digest, start := bytes.CutPrefix(end, []byte(checkStart))
	digest, whole := bytes.CutSuffix(digest, []byte(checkEnd))
	if !start || !whole {
		return invalid(`it does not end in its "check": cut off, or not written by this program`)
	}
	if want := block.Sum(body).String(); string(digest) != want {
		return invalid("its digest is %s, its \"check\" says %.80q: it was changed after it was written", want, digest)
	}
	return nil
}

// Validate checks all that can be told without the snapshot's other files.
func (m *Metadata) Validate() error {
	switch {
	case m.Version != FormatVersion:
		return invalid("version %d", m.Version)
	case m.ID == uuid.Nil:
		return invalid("it has no id")
	case m.ID == m.Parent:
		return invalid("it is its own parent")
	case m.Kind != KindImage && m.Kind != KindStep && m.Kind != KindMachine:
		return invalid("unknown kind %q", m.Kind)
	case m.Arch == "":
		return invalid("it names no architecture")
	case m.DiskBytes <= 0 || m.DiskBytes > block.MaxSize:
		return invalid("a disk of %d bytes", m.DiskBytes)
	case m.MemoryBytes < 0 || m.MemoryBytes > block.MaxSize:
		return invalid("a memory of %d bytes", m.MemoryBytes)
	case m.VCPUs < 0:
		return invalid("%d vCPUs", m.VCPUs)
	case len(m.Processes) > MaxProcesses:
		return invalid("%d processes, at most %d are allowed", len(m.Processes), MaxProcesses)
	}
	for _, p := range m.Processes {
		if len(p.Command) > MaxCommand {
			return invalid("process %d has a command of %d bytes, at most %d are allowed", p.PID, len(p.Command), MaxCommand)
		}
	}
	if err := m.validateLayers(); err != nil {
		return err
	}
	if err := m.validateArtifacts(); err != nil {
		return err
	}
	return m.validateText()
}

func (m *Metadata) validateLayers() error {
	for i, id := range m.Layers {
		switch {
		case id == uuid.Nil || id == m.ID:
			return invalid("layer %s of snapshot %s", id, m.ID)
		case i > 0 && bytes.Compare(m.Layers[i-1][:], id[:]) >= 0:
			return invalid("its layers are not in order")
		}
	}
	return nil
}

func (m *Metadata) validateArtifacts() error {
	need := []string{DiskFile, DiskHeader}
	if m.HasMemory() {
		need = append(need, MemoryFile, MemoryHeader, StateFile)
		switch {
		case m.MemoryBytes == 0:
			return invalid("it has a %s but no memory_bytes", MemoryFile)
		case m.VCPUs == 0:
			return invalid("it has a %s but no vcpus", MemoryFile)
		case m.Engine.Name == "" || m.Engine.Version == "":
			return invalid("it has a %s but does not name the engine", MemoryFile)
		}
	}
	for _, name := range need {
		if _, has := m.Artifacts[name]; !has {
			return invalid("it lists no %s", name)
		}
	}
	if len(m.Artifacts) != len(need) {
		for name := range m.Artifacts {
			if !slices.Contains(need, name) {
				return invalid("it lists an artifact %.80q", name)
			}
		}
	}
	limits := map[string]int64{DiskHeader: block.MaxHeaderSize, MemoryHeader: block.MaxHeaderSize, StateFile: MaxStateSize}
	for name, a := range m.Artifacts {
		limit, digested := limits[name]
		if !digested {
			limit = block.MaxSize
		}
		switch {
		case a.Size < 0 || a.Size > limit:
			return invalid("%s of %d bytes, at most %d are allowed", name, a.Size, limit)
		case digested == a.Digest.IsZero():
			return invalid("%s: digest %s", name, a.Digest)
		}
	}
	return nil
}

// validateText refuses what JSON would change silently.
func (m *Metadata) validateText() error {
	texts := slices.Concat(m.Entrypoint, m.Cmd, m.Image.Packages,
		[]string{m.StartCommand, m.ReadyCommand, m.Image.Ref, m.Context.User, m.Context.Workdir, m.Kernel.Cmdline},
		slices.Collect(maps.Keys(m.Context.Env)), slices.Collect(maps.Values(m.Context.Env)),
		slices.Collect(maps.Keys(m.Labels)), slices.Collect(maps.Values(m.Labels)))
	for _, s := range m.Steps {
		texts = append(texts, s.Args...)
	}
	for _, p := range m.Processes {
		texts = append(texts, p.Command)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return invalid("%.80q is not UTF-8", text)
		}
	}
	return nil
}
