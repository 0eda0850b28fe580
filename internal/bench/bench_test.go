package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPercentileNearestRank(t *testing.T) {
	s := Samples{9, 1, 3, 10, 2, 4, 8, 5, 7, 6}
	for _, c := range []struct{ p, want float64 }{{0, 1}, {10, 1}, {50, 5}, {51, 6}, {90, 9}, {95, 10}, {99, 10}, {100, 10}} {
		if got := s.Percentile(c.p); got != c.want {
			t.Errorf("p%v = %v, want %v", c.p, got, c.want)
		}
	}
	if s[0] != 9 {
		t.Error("the samples were reordered")
	}
	if (Samples{}).Percentile(50) != 0 || (Samples{}).Mean() != 0 || (Samples{}).StdDev() != 0 {
		t.Error("no samples must sum up to 0")
	}
}

func TestSpread(t *testing.T) {
	s := Milliseconds(2*time.Millisecond, 4*time.Millisecond, 4*time.Millisecond, 4*time.Millisecond, 5*time.Millisecond, 5*time.Millisecond, 7*time.Millisecond, 9*time.Millisecond)
	if s.Mean() != 5 || math.Abs(s.StdDev()-math.Sqrt(32.0/7)) > 1e-9 || s.Min() != 2 || s.Max() != 9 || s.Median() != 4 {
		t.Errorf("mean %v, deviation %v, min %v, max %v, median %v", s.Mean(), s.StdDev(), s.Min(), s.Max(), s.Median())
	}
}

func TestPercentileIsASampleThatEnoughDoNotExceed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Samples(rapid.SliceOfN(rapid.Float64Range(-1e9, 1e9), 1, 200).Draw(t, "samples"))
		p := rapid.Float64Range(0, 100).Draw(t, "p")
		got, below, found := s.Percentile(p), 0, false
		for _, v := range s {
			if v <= got {
				below++
			}
			found = found || v == got
		}
		if !found || float64(below) < p/100*float64(len(s))-1e-9 {
			t.Fatalf("p%v of %v = %v: %d do not exceed it", p, s, got, below)
		}
	})
}

func TestReport(t *testing.T) {
	r := NewReport("engine")
	r.Machine = "a machine"
	r.Add("resume", "ms", Samples{80, 90, 70})
	r.Ratio("resume_over_floor", 90, 80)
	r.Ratio("not_measured", 1, 0)
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"suite":"engine","machine":"a machine","results":[{"name":"resume","unit":"ms","n":3,"p50":80,"p90":90,"p99":90,"min":70,"max":90}],"ratios":{"resume_over_floor":1.125}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	var b strings.Builder
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"engine on a machine", "resume", "80.0", "resume_over_floor", "1.12"} {
		if !strings.Contains(b.String(), w) {
			t.Errorf("the table lacks %q:\n%s", w, &b)
		}
	}
}

func TestMachineNamesThePlatform(t *testing.T) {
	if m := Machine(); !strings.HasPrefix(m, "linux/") || !strings.Contains(m, "GiB") || !strings.Contains(m, "Linux ") {
		t.Errorf("machine %q", m)
	}
}
