package block

// runList is runs being put together, in ascending order.
type runList []Run

// add appends r, joined to the last run if it continues that.
func (l *runList) add(r Run) {
	if n := len(*l); n > 0 && r.continues((*l)[n-1]) {
		(*l)[n-1].Length += r.Length
		return
	}
	*l = append(*l, r)
}

// addRange appends what runs hold of [from, to), gaps left out. It returns the
// runs that reach beyond to, for the next call: a sweep passes over every run
// once.
func (l *runList) addRange(runs []Run, from, to int64) []Run {
	for len(runs) > 0 && runs[0].Offset < to {
		r := runs[0]
		if r.End() > from && from < to {
			l.add(r.clip(from, to))
		}
		if r.End() > to {
			break
		}
		runs = runs[1:]
	}
	return runs
}

// addUnlike appends the parts of r that lie elsewhere than runs say, the first of
// which holds r's start. It returns the runs that reach beyond r, for the next
// call.
func (l *runList) addUnlike(runs []Run, r Run) []Run {
	for {
		old := runs[0].clip(r.Offset, r.End())
		if part := r.clip(old.Offset, old.End()); part != old {
			l.add(part)
		}
		if runs[0].End() <= r.End() {
			runs = runs[1:]
		}
		if old.End() == r.End() {
			return runs
		}
		r = r.clip(old.End(), r.End())
	}
}

// fillGaps returns runs with a hole in each gap, up to size.
func fillGaps(runs []Run, size int64) []Run {
	out := make(runList, 0, 2*len(runs)+1)
	var end int64
	hole := func(to int64) {
		if to > end {
			out.add(Run{Offset: end, Length: to - end, Layer: Hole})
		}
	}
	for _, r := range runs {
		hole(r.Offset)
		out.add(r)
		end = r.End()
	}
	hole(size)
	return out
}
