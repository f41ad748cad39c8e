// Package kills kills our daemons, at any moment and under load: an owner of a
// pool and readers, each a process of its own with a directory of its own, as
// kernels have them. After each kill the pool must check clean and every mounted
// file must read as it should; after the last release nothing may be left.
//
// A few kills run with every "go test". More, of a seed that was printed:
//
//	DAXFS_KILLS=1000 DAXFS_KILLS_SEED=7 go test -timeout 2h -v ./integration/kills
//
// All daemons run on one kernel here, so that taking the pool over from a
// process that was killed needs nobody's word. Kernels that end as a whole are
// in integration/vm/kills, single steps of the protocol in daxmem.
package kills
