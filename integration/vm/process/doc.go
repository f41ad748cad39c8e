// Package process is the conformance suite of kmod/daxfs: what processes may
// expect of a mounted image. It fills one memory with images of every kind,
// boots each kernel of the lab over it, and runs the tests of package inside
// in the guest; each of those appears here as a subtest of its guest.
//
//	DAXFS_TEST_REQUIRE=vm go test ./integration/vm/process -run 'TestGuests/6.12$' -inside TestMap
//
// With -short the tests have one view each of an image instead of up to five.
//
// The same tests, as far as they do not ask for more than EROFS has, run on
// the EROFS view of the image on the host (TestErofs), so that a failure in a
// guest is the module's and not the test's.
package process
