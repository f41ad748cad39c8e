package daxmem

import (
	"fmt"
	"sync"
	"testing"
)

// benchCatalog is a pool of 10,000 images, at which another kernel reads, and
// whose owner publishes and removes others until the benchmark ends.
func benchCatalog(b *testing.B, busy bool) (r *Reader, keys [][32]byte) {
	const images = 10_000
	p := newShared(b, 40<<30, manual) // sparse: a catalog of 40,960 records
	addLayer(b, p.Pool, "base", randomBytes(1, 5000))
	for i := range images {
		name := fmt.Sprint("image", i)
		addImage(b, p.Pool, name, "base")
		keys = append(keys, key(name))
	}
	r, err := Attach(bg, unlocked(b, p.path, toAttach), asKernel(1))
	if err != nil {
		b.Fatal(err)
	}
	end := make(chan struct{})
	var owner sync.WaitGroup
	published := 0
	if busy {
		owner.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-end:
					return
				default:
				}
				name := fmt.Sprint("busy", i%100)
				if _, err := tryImage(p.Pool, key(name), key("base")); err != nil {
					b.Error(err)
					return
				}
				published++
				if err := p.Remove(bg, KindImage, key(name)); err != nil {
					b.Error(err)
					return
				}
				if i%50 == 49 {
					if err := p.Sync(bg); err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	b.Cleanup(func() {
		close(end)
		owner.Wait()
		if err := r.Close(); err != nil {
			b.Error(err)
		}
		b.ReportMetric(float64(published)/b.Elapsed().Seconds(), "publications/s")
	})
	return r, keys
}

// BenchmarkLookup finds images in the catalog of another kernel.
func BenchmarkLookup(b *testing.B) {
	for _, busy := range []bool{false, true} {
		b.Run(map[bool]string{false: "quiet", true: "owner publishing"}[busy], func(b *testing.B) {
			r, keys := benchCatalog(b, busy)
			i := 0
			for b.Loop() {
				if _, err := r.Image(keys[i]); err != nil {
					b.Fatal(err)
				}
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

// BenchmarkPin pins and unpins images that were verified before.
func BenchmarkPin(b *testing.B) {
	r, keys := benchCatalog(b, true)
	keys = keys[:100]
	for _, k := range keys {
		_, unpin, err := r.Pin(KindImage, k)
		if err != nil {
			b.Fatal(err)
		}
		unpin()
	}
	i := 0
	for b.Loop() {
		_, unpin, err := r.Pin(KindImage, keys[i%len(keys)])
		if err != nil {
			b.Fatal(err)
		}
		unpin()
		i++
	}
}
