// Package integration tests the snapshotter with a real containerd, its shim
// and runc, and images like those that people run. See lab for how the machine
// is left as it was, images for what is pulled, ocitree for what must come out.
//
// The tests need root and what script/setup.sh installs. Where that is missing
// they are skipped, or fail if DAXFS_TEST_REQUIRE=root,containerd is set.
package integration
