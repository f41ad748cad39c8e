package disk

// Extent is one row of a layer index's extent table, ExtentSize (48) bytes:
// the bytes of one or more regular files of the layer. Rows are sorted by
// digest.
//
//	offset size field
//	     0   32 Digest   BLAKE3-256 of the Size bytes
//	    32    8 Size     bytes, not zero
//	    40    8 Offset   relative to base, a multiple of the block size
type Extent struct {
	Digest [32]byte
	Size   uint64
	Offset uint64
}

// Encode writes e into the first ExtentSize bytes of b.
func (e *Extent) Encode(b []byte) {
	b = b[:ExtentSize]
	copy(b, e.Digest[:])
	le.PutUint64(b[32:], e.Size)
	le.PutUint64(b[40:], e.Offset)
}

// DecodeExtent reads one row.
func DecodeExtent(b []byte) Extent {
	b = b[:ExtentSize]
	return Extent{Digest: [32]byte(b[:32]), Size: le.Uint64(b[32:]), Offset: le.Uint64(b[40:])}
}
