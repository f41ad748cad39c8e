// Package mutate makes damaged DAXFS images: sound ones of every kind, and
// changes to them that a reader must survive. It knows the records, so that a
// change gets past the first checks, and is the same for the same seed.
package mutate
