// Package integration tests the snapshotter with a real containerd, its shim
// and runc, and images like those that people run. See lab for how the machine
// is left as it was, images for what is pulled, ocitree for what must come out.
//
// The tests need root and what script/setup.sh installs. Where that is missing
// they are skipped, or fail if DAXFS_TEST_REQUIRE=root,containerd is set.
//
// nerdctl is not among the clients: it cannot be installed from where the rest
// comes from. What it asks of a snapshotter is what containerd's Go client does
// for it, and that is here: pull with unpacking (lab.PullUnpack, whose
// snapshots carry labels) and unpacking of an image that is there already, as
// after load, commit and build (lab.FetchUnpack, without labels); containers on
// snapshots of their own, in several namespaces (TestNamespaces); mapped user
// ids (TestIDMapped); diff and commit of running containers (TestDiffAndCommit).
package integration
