package daxmem

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// scribbles are writes to shared memory that follow no protocol: 4 bytes of
// place and 8 of what is written there each, at most 64 of them.
func scribble(w Window, b []byte, size int64) error {
	for n := 0; len(b) >= 12 && n < 64; n++ {
		at := int64(binary.LittleEndian.Uint32(b)) % (size / 8) * 8
		if err := w.Store(at, binary.LittleEndian.Uint64(b[4:])); err != nil {
			return err
		}
		b = b[12:]
	}
	return nil
}

// scribbleAt is one such write.
func scribbleAt(at int64, v uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(at/8))
	return binary.LittleEndian.AppendUint64(b, v)
}

// hostilePool is a small pool with a layer, its image and its chain.
func hostilePool(t testing.TB) *sharedPool {
	t.Helper()
	log.L.Logger.SetOutput(io.Discard)
	t.Cleanup(func() { log.L.Logger.SetOutput(os.Stderr) })
	p := newShared(t, 8*mib, asKernel(1))
	addLayer(t, p.Pool, "a", randomBytes(1, 5000), randomBytes(2, 100_000))
	addImage(t, p.Pool, "ia", "a")
	if _, err := p.PublishChain(bg, key("chain"), key("a"), [32]byte{}); err != nil {
		t.Fatal(err)
	}
	return p
}

var hostileRecords = []recordKey{{KindLayer, key("a")}, {KindImage, key("ia")}, {KindChain, key("chain")}, {KindImage, key("none")}}

// FuzzHostileOwner: whatever another kernel writes over superblock, catalog,
// index, seats and segments, a reader ends what it does, and what it is handed
// lies in the region and has the digest that it says.
func FuzzHostileOwner(f *testing.F) {
	p := hostilePool(f)
	size := p.sup.dataStart
	for slot := range 3 {
		at := slotOffset(slot)
		f.Add(scribbleAt(at, ^uint64(0))) // a word that makes no sense
		f.Add(scribbleAt(at+16, 1<<62))   // a place outside
		f.Add(scribbleAt(at+24, 1<<62))   // a size
		f.Add(scribbleAt(at+64, 1))       // another digest
		f.Add(append(scribbleAt(at, 0), scribbleAt(at+8, 0)...))
	}
	for at := p.sup.copyAt(0); at < min(size, p.sup.copyAt(0)+4096); at += 64 {
		f.Add(append(scribbleAt(at, 0x0000000100000001), scribbleAt(at+8, 0xffffffffffffffff)...))
	}
	f.Add(scribbleAt(512, 1<<60))
	f.Add(scribbleAt(ownerWordAt, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := hostilePool(t)
		r := p.attach(t, asKernel(2))
		if err := scribble(p.w, b, size); err != nil {
			t.Fatal(err)
		}
		// Nothing but accidents is stopped by a checksum.
		for slot := range 3 {
			r := make([]byte, recordSize)
			if _, err := p.w.ReadAt(r, slotOffset(slot)); err != nil {
				t.Fatal(err)
			}
			if err := p.w.Store(slotOffset(slot)+8, uint64(le.Uint32(r[8:]))|uint64(entryCRC(r))<<32); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
		defer cancel()
		within(t, 10*time.Second, func() {
			for _, k := range hostileRecords {
				rec, unpin, err := r.Pin(k.kind, k.key)
				if err != nil {
					continue
				}
				if rec.Kind != KindChain {
					if rec.Offset < size || rec.Size <= 0 || rec.Offset+rec.Size > r.Size() {
						t.Errorf("%s at [%d,+%d) of %d bytes", rec.Name(), rec.Offset, rec.Size, r.Size())
					}
					if b, err := r.ReadSegment(rec); err != nil || hashBytes(b) != rec.Digest {
						t.Errorf("%s does not have its digest: %v", rec.Name(), err)
					}
				}
				unpin()
			}
			if err := r.Ask(ctx, &Request{Kind: AskFlatten, Chain: key("chain")}); err == nil {
				t.Error("answered, and nobody serves")
			}
			_, _ = r.Owner()
			_, _ = r.Seats()
			_ = r.Check()
		})
	})
}

// FuzzHostileReader: whatever a reader writes over the seats and requests, the
// owner goes on, does not lose a record that an honest reader has pinned, and
// does not change a byte of it.
func FuzzHostileReader(f *testing.F) {
	p := hostilePool(f)
	g := &p.sup.geometry
	for n := range 3 {
		at := g.seat(n)
		f.Add(scribbleAt(at-g.seats, ^uint64(0)))
		f.Add(scribbleAt(at-g.seats+40, 0x0807060504030201)) // another byte order
		f.Add(scribbleAt(at-g.seats+seatHeartbeat, ^uint64(0)))
		f.Add(scribbleAt(at-g.seats+seatPins, ^uint64(0)))
		f.Add(append(scribbleAt(at-g.seats+seatRequest+8, ^uint64(0)), scribbleAt(at-g.seats+seatRequest, 1)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := hostilePool(t)
		g := &p.sup.geometry
		honest := p.attach(t, asKernel(2))
		rec, unpin, err := honest.Pin(KindImage, key("ia"))
		if err != nil {
			t.Fatal(err)
		}
		all, err := p.region.Window(g.seats, g.dataStart-g.seats, true)
		if err != nil {
			t.Fatal(err)
		}
		defer all.Close()
		mine := [2][2]int64{} // what an honest kernel has written is not a hostile one's to change
		for i, n := range []int{p.seat.number, honest.seat.number} {
			mine[i] = [2]int64{g.seat(n), g.seat(n) + g.seatSize}
		}
		for n := 0; len(b) >= 12 && n < 64; n++ {
			at := g.seats + int64(binary.LittleEndian.Uint32(b))%((g.dataStart-g.seats)/8)*8
			if (at < mine[0][0] || at >= mine[0][1]) && (at < mine[1][0] || at >= mine[1][1]) {
				if err := all.Store(at, binary.LittleEndian.Uint64(b[4:])); err != nil {
					t.Fatal(err)
				}
			}
			b = b[12:]
		}
		within(t, 10*time.Second, func() {
			ctx, cancel := context.WithTimeout(bg, 30*time.Millisecond)
			defer cancel()
			if err := p.Serve(ctx, func(context.Context, *Request) error { return errdefs.ErrNotImplemented }); err != nil {
				t.Errorf("serve: %v", err)
			}
			if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
				t.Errorf("collect: %v", err)
			}
			if _, err := tryLayer(p.Pool, key("b"), randomBytes(3, 10_000)); err != nil {
				t.Errorf("publish: %v", err)
			}
			if _, err := p.Seats(); err != nil {
				t.Errorf("seats: %v", err)
			}
			if b, err := honest.ReadSegment(rec); err != nil || hashBytes(b) != rec.Digest {
				t.Errorf("what an honest reader has pinned: %v", err)
			}
			if err := honest.Check(); err != nil && !errors.Is(err, ErrFenced) {
				t.Errorf("seat of an honest reader: %v", err)
			}
			mustCheck(t, p.Pool)
		})
		unpin()
	})
}

// within fails if fn takes longer.
func within(t testing.TB, limit time.Duration, fn func()) {
	t.Helper()
	start := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(limit):
		panic("still at it after " + time.Since(start).String())
	}
}
