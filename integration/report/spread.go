package report

import (
	"fmt"
	"math"
	"slices"
)

// Spread is the median, least and largest of some numbers.
type Spread struct{ Median, Least, Most float64 }

// SpreadOf is that of at least one number.
func SpreadOf(xs []float64) Spread {
	xs = slices.Sorted(slices.Values(xs))
	n := len(xs)
	return Spread{(xs[(n-1)/2] + xs[n/2]) / 2, xs[0], xs[n-1]}
}

func (s Spread) String() string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Median, s.Least, s.Most)
}

// Ratios divides number by number and returns the quotients' spread. Both have
// the same length.
func Ratios(a, b []float64) Spread {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return SpreadOf(out)
}

// Percentile is the least of some numbers that is not below p percent of them,
// p from 0 to 100.
func Percentile(xs []float64, p float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	return xs[max(0, int(math.Ceil(p/100*float64(len(xs))))-1)]
}
