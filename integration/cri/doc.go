// Package cri runs containerd's own tests of its Kubernetes interface (its
// package integration) with our snapshotter and differ as its default, and the
// same ones on containerd's overlayfs, which says what this machine can do.
//
// The suite is built by script/setup.sh. It and everything that it starts lives
// in namespaces of its own for mounts, network and processes, since it makes
// bridges, writes to /run and /var/lib, and kills every "containerd" it sees.
package cri
