// Package hostile tries what a kernel with our module does with images that are
// damaged or that somebody changes while they are mounted: package mutate makes
// them, package inside uses them in guests, and the tests here put them into
// the guests' pool, change them there, and judge.
package hostile
