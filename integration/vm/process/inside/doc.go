// Package inside is the part of the conformance suite for kmod/daxfs that runs
// in a guest, against images that lie in a memory which the host filled. Its
// tests are built with `go test -c`; package process says where they run, with
// a Config. Without one nothing runs.
//
// Most tests hold for any good read-only file system: they also run on the
// EROFS view of the same image, which shows that the tests are right. The
// others call daxfsOnly.
//
// A name of a test says what must hold, a file's name which part of the system
// is asked.
package inside
