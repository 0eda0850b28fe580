package sandboxapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/compare"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
	"github.com/sporevm/spore/internal/snapshot"
	"github.com/sporevm/spore/internal/store"
)

// Limits of what is told of snapshots.
const (
	maxRuns    = 16 << 10 // of a map; where there are more it is drawn in mapCells cells
	mapCells   = 4096
	maxRegions = 1000 // of a difference
)

func (s routes) GetTree(w http.ResponseWriter, r *http.Request) {
	infos, err := s.o.Snapshots.List(r.Context(), nil)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	templates, err := s.o.Sandboxes.Templates(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	byID := make(map[uuid.UUID]fleet.Template, len(templates))
	for _, t := range templates {
		byID[t.ID] = t
	}
	out := []openapi.TreeNode{}
	for _, info := range infos {
		m := info.Metadata
		t, is := byID[info.ID]
		if !is && !s.sees(r.Context(), m) {
			continue
		}
		node := openapi.TreeNode{
			ID: info.ID.String(), Names: notNil(info.Names), Parent: idOrEmpty(m.Parent), Kind: string(m.Kind), Created: m.Created.UTC(), Generation: int(m.Generation),
			StoredBytes: m.StoredBytes(), DiskBytes: m.DiskBytes, MemoryBytes: m.MemoryBytes, GuestUsed: m.GuestUsed, CPUCount: m.VCPUs, Image: m.Image.Ref,
			Forks: t.Forks, Template: is,
		}
		for _, p := range m.Processes {
			node.Processes = append(node.Processes, p.Command)
		}
		out = append(out, node)
	}
	answer.JSON(w, http.StatusOK, out)
}

// sees tells whether the caller may know of a snapshot that is no template: what another key's sandbox sleeps in is not its business.
func (s routes) sees(ctx context.Context, m *snapshot.Metadata) bool {
	of := fleet.StateOf(m)
	if of == "" || caller(ctx) == "" {
		return true
	}
	_, err := s.sandbox(ctx, of)
	return err == nil
}

// open opens a snapshot by name or id.
func (s routes) open(ctx context.Context, ref string) (*snapshot.Snapshot, error) {
	snap, err := s.o.Snapshots.Open(ctx, ref)
	if err != nil {
		return nil, ofSnapshots(err)
	}
	if !s.sees(ctx, snap.Metadata()) {
		snap.Close()
		return nil, &fleet.Error{Kind: fleet.NotFound, Message: "there is no snapshot " + ref}
	}
	return snap, nil
}

// ofSnapshots says whose turn it is after an error of the snapshots'.
func ofSnapshots(err error) error {
	if notFound := (*snapshot.NotFoundError)(nil); errors.As(err, &notFound) || errors.Is(err, store.ErrNoSnapshot) || errors.Is(err, store.ErrNoName) {
		return &fleet.Error{Kind: fleet.NotFound, Message: err.Error()}
	}
	if ambiguous := (*snapshot.AmbiguousError)(nil); errors.As(err, &ambiguous) {
		return &fleet.Error{Kind: fleet.Invalid, Message: err.Error()}
	}
	return err
}

func (s routes) GetMap(w http.ResponseWriter, r *http.Request, ref string, q openapi.GetMapParams) {
	snap, err := s.open(r.Context(), ref)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer snap.Close()
	image, artifact := snap.Memory(), openapi.Memfile
	if q.Artifact == openapi.RootfsExt4 {
		image, artifact = snap.Disk(), openapi.RootfsExt4
	}
	if image == nil {
		s.fail(w, r, &fleet.Error{Kind: fleet.NotFound, Message: "this snapshot has no " + string(artifact), Hint: "snapshots of images and of steps are disks only"})
		return
	}
	answer.JSON(w, http.StatusOK, mapOf(image.Header(), artifact))
}

// mapOf draws which layer the bytes of an image are in.
func mapOf(h *block.Header, artifact openapi.Artifact) openapi.Map {
	usage := h.Usage()
	m := openapi.Map{Artifact: artifact, Size: h.Size, BlockSize: h.BlockSize, Layers: make([]openapi.MapLayer, len(h.Layers)), Runs: [][]int64{}}
	for i, l := range h.Layers {
		m.Layers[i] = openapi.MapLayer{Snapshot: l.ID.String(), Used: usage.Layers[i].Bytes, Stored: l.StoredSize()}
	}
	add := func(offset, length int64, layer int) {
		if n := len(m.Runs); n > 0 && m.Runs[n-1][2] == int64(layer) {
			m.Runs[n-1][1] += length // other blocks of the same layer
			return
		}
		m.Runs = append(m.Runs, []int64{offset, length, int64(layer)})
	}
	if m.Coarse = len(h.Runs) > maxRuns; !m.Coarse {
		for _, run := range h.Runs {
			add(run.Offset, run.Length, layerOf(run))
		}
		return m
	}
	cell := max(1, (h.Size+mapCells-1)/mapCells)
	for offset := int64(0); offset < h.Size; offset += cell {
		length := min(cell, h.Size-offset)
		held, most := map[int]int64{}, -1
		for run := range h.RunsIn(offset, length) {
			layer := layerOf(run)
			held[layer] += min(run.End(), offset+length) - max(run.Offset, offset)
			if held[layer] > held[most] {
				most = layer
			}
		}
		add(offset, length, most)
	}
	return m
}

// layerOf is a run's layer as the map has it: -1 is a hole.
func layerOf(run block.Run) int {
	if run.IsHole() {
		return -1
	}
	return run.Layer
}

func (s routes) GetDiff(w http.ResponseWriter, r *http.Request, refA, refB string) {
	a, err := s.open(r.Context(), refA)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer a.Close()
	b, err := s.open(r.Context(), refB)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer b.Close()
	report, err := compare.Snapshots(r.Context(), a, b, compare.Options{Regions: maxRegions})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, report)
}
