//go:build race

package snapshotter_test

const raceEnabled = true
