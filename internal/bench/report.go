package bench

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Report is what a suite found. Its JSON form is stable: other tools read it.
type Report struct {
	Suite   string             `json:"suite"`
	Machine string             `json:"machine"` // what it ran on, in words
	Results []Result           `json:"results"`
	Ratios  map[string]float64 `json:"ratios"` // dimensionless: one result over another of the same run
}

// Result sums up the samples of one measurement.
type Result struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"` // ms, MiB/s, bytes, ...
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
}

// NewReport returns an empty report about this machine.
func NewReport(suite string) *Report {
	return &Report{Suite: suite, Machine: Machine(), Results: []Result{}, Ratios: map[string]float64{}}
}

// Add sums up samples as a result.
func (r *Report) Add(name, unit string, s Samples) {
	r.Results = append(r.Results, Result{
		Name: name, Unit: unit, N: len(s), P50: s.Percentile(50), P90: s.Percentile(90), P99: s.Percentile(99), Min: s.Min(), Max: s.Max(),
	})
}

// Ratio records a quotient. A denominator of 0 is left out: it was not measured.
func (r *Report) Ratio(name string, numerator, denominator float64) {
	if denominator != 0 {
		r.Ratios[name] = numerator / denominator
	}
}

// Table writes the report for a reader.
func (r *Report) Table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s on %s\n\n", r.Suite, r.Machine)
	fmt.Fprintln(tw, "name\tunit\tn\tp50\tp90\tp99\tmin\tmax\t")
	for _, x := range r.Results {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t\n", x.Name, x.Unit, x.N, figure(x.P50), figure(x.P90), figure(x.P99), figure(x.Min), figure(x.Max))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(r.Ratios) == 0 {
		return nil
	}
	names := make([]string, 0, len(r.Ratios))
	for name := range r.Ratios {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare)
	tw = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nratio\tvalue\t")
	for _, name := range names {
		fmt.Fprintf(tw, "%s\t%s\t\n", name, figure(r.Ratios[name]))
	}
	return tw.Flush()
}

// figure writes a number with three significant digits or all of its integer part.
func figure(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// Machine describes the host in one line: platform, processors, memory, kernel.
func Machine() string {
	parts := []string{runtime.GOOS + "/" + runtime.GOARCH, strconv.Itoa(runtime.NumCPU()) + " × " + cpuModel()}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		parts = append(parts, fmt.Sprintf("%d GiB", (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30))
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		parts = append(parts, "Linux "+unix.ByteSliceToString(uts.Release[:]))
	}
	return strings.Join(parts, ", ")
}

// cpuModel reads the processor's marketing name; ARM kernels do not tell one.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "CPU"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "CPU"
}
