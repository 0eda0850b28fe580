// Package bench measures spore: what a measurement is, how it is summed up and reported, and the suites.
package bench

import (
	"math"
	"slices"
	"time"
)

// Samples are repeated measurements of one thing, in one unit, in the order in which they were taken.
type Samples []float64

// Milliseconds makes samples of durations, in ms.
func Milliseconds(ds ...time.Duration) Samples {
	s := make(Samples, len(ds))
	for i, d := range ds {
		s[i] = float64(d) / float64(time.Millisecond)
	}
	return s
}

// Percentile returns the smallest sample that at least p percent of the samples do not exceed (nearest rank). It is 0 without samples.
func (s Samples) Percentile(p float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the 50th percentile.
func (s Samples) Median() float64 { return s.Percentile(50) }

// Min returns the smallest sample, 0 without samples.
func (s Samples) Min() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Min(s)
}

// Max returns the greatest sample, 0 without samples.
func (s Samples) Max() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// Mean returns the average, 0 without samples.
func (s Samples) Mean() float64 {
	if len(s) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return sum / float64(len(s))
}

// StdDev returns the standard deviation of the samples as a sample of all possible runs (n-1); 0 for fewer than two.
func (s Samples) StdDev() float64 {
	if len(s) < 2 {
		return 0
	}
	mean, sum := s.Mean(), 0.0
	for _, v := range s {
		sum += (v - mean) * (v - mean)
	}
	return math.Sqrt(sum / float64(len(s)-1))
}
