package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
)

// shownRun is a run of an image as --json shows it.
type shownRun struct {
	Offset      int64      `json:"offset"`
	Length      int64      `json:"length"`
	Layer       *uuid.UUID `json:"layer"` // null for a hole
	LayerOffset int64      `json:"layer_offset"`
}

// shownRuns returns the runs of a header inside a range.
func shownRuns(h *block.Header, offset, length int64) []shownRun {
	out := []shownRun{}
	for run := range h.RunsIn(offset, length) {
		s := shownRun{Offset: run.Offset, Length: run.Length, LayerOffset: run.LayerOffset}
		if !run.IsHole() {
			s.Layer = &h.Layers[run.Layer].ID
		}
		out = append(out, s)
	}
	return out
}

// runTable lists runs, at most limit of them; 0: all.
func runTable(w io.Writer, runs []shownRun, limit int) error {
	rows := [][]string{}
	for i, r := range runs {
		if limit > 0 && i == limit {
			break
		}
		layer, at := "hole", ""
		if r.Layer != nil {
			layer, at = r.Layer.String(), fmt.Sprintf("%#x", r.LayerOffset)
		}
		rows = append(rows, []string{fmt.Sprintf("  %#x", r.Offset), formatBytes(r.Length), layer, at})
	}
	if err := table(w, []string{"  OFFSET", "LENGTH", "LAYER OF", "AT"}, rows); err != nil {
		return err
	}
	if left := len(runs) - len(rows); left > 0 {
		fmt.Fprintf(w, "  … and %d more: --expand lists all\n", left)
	}
	return nil
}

// mapWidth and mapRows are the cells of a heat map.
const (
	mapWidth = 64
	mapRows  = 8
)

// paint draws where an image's bytes lie: a cell for each of n equal parts, as class says of the header's layers, the class that has most of a part winning.
// Parts that nothing covers, which a diff has, are blank.
func paint(h *block.Header, n int, class func(layer int) int, glyphs []string) string {
	size := max(h.Size, 1)
	var out strings.Builder
	weight := make([]int64, len(glyphs))
	for i := range int64(n) {
		from, to := size*i/int64(n), size*(i+1)/int64(n)
		clear(weight)
		for run := range h.RunsIn(from, to-from) {
			weight[class(run.Layer)] += run.Length
		}
		best, most := -1, int64(0)
		for c, w := range weight {
			if w > most || w == most && w > 0 && c > best {
				best, most = c, w
			}
		}
		if best < 0 {
			out.WriteString(" ")
		} else {
			out.WriteString(glyphs[best])
		}
	}
	return out.String()
}

// The classes of a heat map.
const (
	cellHole = iota
	cellOld  // four or more generations ago
	cellMid  // two or three
	cellNear // the parent
	cellOwn
	cellPacked // own and compressed
	cellClasses
)

// layerClass is the class of what lies in a layer of an image.
func layerClass(h *block.Header, l block.Layer, age func(id uuid.UUID) int) int {
	if l.ID == h.ID {
		if slices.ContainsFunc(l.Frames, func(f block.Frame) bool { return f.Codec != block.Plain }) {
			return cellPacked
		}
		return cellOwn
	}
	switch n := age(l.ID); {
	case n <= 1:
		return cellNear
	case n <= 3:
		return cellMid
	}
	return cellOld
}

// heatMap draws an image. age tells how many generations before the snapshot a layer was written.
func (a *app) heatMap(w io.Writer, h *block.Header, age func(id uuid.UUID) int) {
	classes := make([]int, len(h.Layers))
	for i, l := range h.Layers {
		classes[i] = layerClass(h, l, age)
	}
	class := func(layer int) int {
		if layer == block.Hole {
			return cellHole
		}
		return classes[layer]
	}
	glyphs := [cellClasses]string{"·", "░", "▒", "▓", "█", "◆"}
	if a.colored() {
		for i, code := range [cellClasses]string{"2", "34", "36", "32", "33;1", "35;1"} {
			glyphs[i] = "\x1b[" + code + "m" + glyphs[i] + "\x1b[0m"
		}
	}
	cells := mapWidth * mapRows
	if blocks := int(h.Size / h.BlockSize); blocks < cells {
		cells = max(blocks, 1)
	}
	for row := 0; row*mapWidth < cells; row++ {
		part := *h
		from, to := h.Size*int64(row*mapWidth)/int64(cells), h.Size*int64(min((row+1)*mapWidth, cells))/int64(cells)
		part.Size, part.Runs = to-from, nil
		for run := range h.RunsIn(from, to-from) {
			run.Offset -= from
			part.Runs = append(part.Runs, run)
		}
		fmt.Fprintf(w, "  %s\n", paint(&part, min(mapWidth, cells-row*mapWidth), class, glyphs[:]))
	}
	fmt.Fprintf(w, "  %s hole  %s own  %s own, compressed  %s the parent's  %s 2-3 generations old  %s older; a cell is %s\n",
		glyphs[cellHole], glyphs[cellOwn], glyphs[cellPacked], glyphs[cellNear], glyphs[cellMid], glyphs[cellOld], formatBytes(h.Size/int64(cells)))
}

// colored tells whether stdout may be coloured.
func (a *app) colored() bool {
	_, tty := terminal(a.Out)
	return tty && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}
