package report

import "math"

// Colours of the things compared in a plot, in their order; readable without
// colour vision.
var Colours = []string{"#999999", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00"}

// NiceStep rounds up to 1, 2 or 5 times a power of ten.
func NiceStep(x float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(x)))
	for _, m := range []float64{1, 2, 5} {
		if x <= m*power {
			return m * power
		}
	}
	return 10 * power
}
