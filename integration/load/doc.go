// Package load works at a snapshotter as containerd does, from several
// goroutines at once: it pulls images, runs containers on them, removes both and
// collects. It knows what every file of every image must hold, and compares.
//
// There is no containerd in it: after the end of a snapshotter's process
// containerd does not dial again for up to three seconds, and tests that kill
// daemons a thousand times would wait for that. What containerd asks of a
// snapshotter, in its order and with its labels, is here; whole systems with
// containerd are in the lab (integration/vm/engines).
package load
