package daxmem

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// benchPool is in shared memory where there is some: what is measured is the
// pool, not the disk.
func benchPool(b *testing.B, size int64) *Pool {
	dir, err := os.MkdirTemp("/dev/shm", "daxmem-bench-")
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	p, err := OpenOrCreate(bg, filepath.Join(dir, "pool"), Options{MaxSize: size, SyncDelay: -1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, mib, 16 * mib, 128 * mib} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			p := benchPool(b, 2<<30)
			data := randomBytes(1, size)
			imp, err := p.NewImport(bg)
			if err != nil {
				b.Fatal(err)
			}
			room, n := int64(1<<30), uint64(0)
			b.SetBytes(int64(size))
			for b.Loop() {
				le.PutUint64(data, n)
				n++
				if _, err := imp.Put(bg, bytes.NewReader(data), int64(size)); err != nil {
					b.Fatal(err)
				}
				if room -= int64(size); room < int64(size) {
					b.StopTimer()
					imp.Abort()
					if imp, err = p.NewImport(bg); err != nil {
						b.Fatal(err)
					}
					room = 1 << 30
					b.StartTimer()
				}
			}
			imp.Abort()
		})
	}
}

func BenchmarkPutKnown(b *testing.B) {
	for _, size := range []int{4 << 10, mib} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			p := benchPool(b, 1<<30)
			data := randomBytes(1, size)
			imp, err := p.NewImport(bg)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := imp.Put(bg, bytes.NewReader(data), int64(size)); err != nil {
					b.Fatal(err)
				}
			}
			imp.Abort()
		})
	}
}

func BenchmarkPublishLayer(b *testing.B) {
	for _, files := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(files, " extents"), func(b *testing.B) {
			p := benchPool(b, 1<<30)
			var data [][]byte
			for i := range files {
				data = append(data, randomBytes(uint64(i), 64))
			}
			for b.Loop() {
				b.StopTimer()
				imp, err := p.NewImport(bg)
				if err != nil {
					b.Fatal(err)
				}
				exts, err := putAll(imp, data)
				if err != nil {
					b.Fatal(err)
				}
				exts = distinct(exts)
				size := segmentSize(len(exts), 0)
				build := func(off int64) ([]byte, error) { return buildSegment(off, p.size, exts, nil, false, size), nil }
				b.StartTimer()
				if _, err := imp.PublishLayer(bg, key("l"), size, build, RecordMeta{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := p.Remove(bg, KindLayer, key("l")); err != nil {
					b.Fatal(err)
				}
				if err := p.Sync(bg); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "pool")
	p, err := OpenOrCreate(bg, path, Options{MaxSize: 1 << 30, SyncDelay: -1})
	if err != nil {
		b.Fatal(err)
	}
	var files [][]byte
	for i := range 10000 {
		files = append(files, randomBytes(uint64(i), 64))
	}
	for i := range 50 {
		addLayer(b, p, fmt.Sprint(i), files[i*100:i*100+5000]...)
	}
	mustClose(b, p)
	for b.Loop() {
		if p, err = OpenOrCreate(bg, path, Options{SyncDelay: -1}); err != nil {
			b.Fatal(err)
		}
		mustClose(b, p)
	}
}

// BenchmarkCopy is the ceiling: plain writes into the same kind of memory.
func BenchmarkCopy(b *testing.B) {
	p := benchPool(b, 1<<30)
	data := randomBytes(1, mib)
	b.SetBytes(mib)
	off := p.sup.dataStart
	for b.Loop() {
		if _, err := p.region.WriteAt(data, off); err != nil {
			b.Fatal(err)
		}
		if off += mib; off > 900*mib {
			b.StopTimer()
			if err := p.region.Punch(p.sup.dataStart, p.size-p.sup.dataStart); err != nil {
				b.Fatal(err)
			}
			off = p.sup.dataStart
			b.StartTimer()
		}
	}
	p.region.Punch(p.sup.dataStart, p.size-p.sup.dataStart)
}

func BenchmarkHash(b *testing.B) {
	for _, size := range []int{64, 4096, mib} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			data := randomBytes(1, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				hashBytes(data)
			}
		})
	}
}
