//go:build !race

package snapshotter_test

const raceEnabled = false
