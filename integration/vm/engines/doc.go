// Package engines tests the snapshotter's engines and regions on the kernels of
// the lab, where there is memory for them: package inside runs in a guest, over
// a pmem device with and without our module, and over a bare physical range.
// Then whole systems: containerd and our daemon in one guest, and two kernels
// on one pool.
package engines
