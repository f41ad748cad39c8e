// Package inside is the part of the hostile tests that runs in a guest: it
// mounts images that are damaged, or are being damaged, and does to them
// whatever programs do to a file system. What it finds is a Report.
//
// It runs in processes of the test's own binary (Main): one that watches, and
// others that do the work and may hang or be killed.
package inside
