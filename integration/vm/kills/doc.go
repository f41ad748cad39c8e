// Package kills ends whole guests, at any moment and under load: one that owns a
// pool and one that reads it, each with our daemon and clients that pull, run,
// remove and collect. What the other one has mounted must read as it should all
// the time, it must be able to take the pool over, and after the last release
// nothing may be left. Processes are killed in integration/kills, which is much
// faster; guests at single steps of the protocol in daxmem.
package kills
