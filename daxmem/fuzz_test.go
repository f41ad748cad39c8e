package daxmem

import (
	"hash/crc32"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// FuzzParseSegment: whatever a segment holds, what is accepted stays inside the
// region and apart. The superblock's checksum is made right, or nothing would
// get past it.
func FuzzParseSegment(f *testing.F) {
	const region, off = 1 << 20, 8192
	ext := Extent{Digest: key("a"), Offset: 512 << 10, Size: 5000}
	f.Add(buildSegment(off, region, []Extent{ext}, nil, false, segmentSize(1, 0)), uint8(KindLayer))
	f.Add(buildSegment(off, region, nil, [][32]byte{key("l")}, true, segmentSize(0, 1)), uint8(KindImage))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		if len(b) < blockSize {
			return
		}
		if sb, err := disk.DecodeSuperblock(fixed(b)); err == nil {
			sb.Encode(b)
		}
		seg, err := parseSegment(b, off, region, Kind(kind))
		if err != nil {
			return
		}
		for _, s := range seg.spans(off, int64(len(b))) {
			if s.off < off || s.size <= 0 || s.off%blockSize != 0 || s.off+s.size > region {
				t.Fatalf("accepted a segment of %d bytes with space %+v", len(b), s)
			}
		}
		for _, w := range seg.rows {
			if w.off < off+int64(len(b)) || w.off%blockSize != 0 || w.size <= 0 || w.off+w.space() > region {
				t.Fatalf("accepted %+v", w)
			}
		}
		m := newMem(region)
		copy(m.mem[off:], b)
		size, space, rows := salvage(m, off, blockSize, region)
		if size < 0 || space < size || space > region-off {
			t.Fatalf("salvaged a segment of %d bytes in %d", size, space)
		}
		for _, w := range rows {
			if w.off < blockSize || w.off+w.space() > region {
				t.Fatalf("salvaged %+v", w)
			}
		}
	})
}

// fixed returns b with a checksum that matches: the encoder knows how.
func fixed(b []byte) []byte {
	c := append([]byte(nil), b...)
	if _, err := disk.DecodeSuperblock(c); err == nil {
		return c
	}
	sum := c[112:116]
	clear(sum)
	le.PutUint32(sum, crc32.Checksum(c[:disk.SuperblockSize], castagnoli))
	return c
}

func FuzzDecodeEntry(f *testing.F) {
	e := entry{word: makeWord(stateLive, KindLayer, 3, 0), off: 1 << 20, size: 100, key: key("a")}
	f.Add(e.encode())
	f.Add(make([]byte, recordSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < recordSize {
			return
		}
		e, cond, why := decodeEntry(b[:recordSize])
		if (cond == condDamaged) != (why != "") && cond != condTorn {
			t.Fatalf("condition %d, reason %q", cond, why)
		}
		if cond == condLive {
			// A live record says the same when it is written again, but for
			// reserved bytes.
			if again, c, _ := decodeEntry(e.encode()); c != condLive || again != e {
				t.Fatalf("%+v became %+v", e, again)
			}
		}
	})
}
