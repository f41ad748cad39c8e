package snapshotter_test

import (
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOneCopyInPageCache imports and reads a file: the pool's own pages must
// not stay in the page cache beside those of the mounted image.
func TestOneCopyInPageCache(t *testing.T) {
	r := start(t)
	const size = 64 << 20
	r.layer(t, "base", "", func(d string) {
		f, err := os.Create(d + "/data")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), size); err != nil {
			t.Fatal(err)
		}
	})
	if err := r.pool.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.Stat(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	method := info.Labels["containerd.io/snapshot/daxfs.engine"]
	data := lowerOf(t, mounts) + "/data"
	for range 2 {
		f, err := os.Open(data)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{f}); err != nil || n != size {
			t.Fatalf("read %d bytes: %v", n, err)
		}
		f.Close()
	}
	image, pool := cached(t, data), cached(t, r.root+"/pool")
	t.Logf("%s: %d bytes of the mounted file and %d of the pool file are in the page cache", method, image, pool)
	if image < size*9/10 {
		t.Errorf("the mounted file has %d of %d bytes in the page cache", image, size)
	}
	if method == "erofs/file+directio" || method == "erofs/loop+directio" {
		if pool > size/10 {
			t.Errorf("the pool file has %d bytes in the page cache beside the mounted file's", pool)
		}
	}
}

// cached is how many bytes of a file are in the page cache.
func cached(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0); err != nil {
		t.Skipf("cachestat (Linux 6.5): %v", err)
	}
	return int64(st.Cache) * int64(os.Getpagesize())
}
