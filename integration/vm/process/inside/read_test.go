package inside

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// borders are places around those of pages, huge pages and a file's end.
func borders(size int64) []int64 {
	var out []int64
	for _, at := range []int64{0, pageSize, 2 * pageSize, 65536, 2 << 20, size / 2, size} {
		for _, d := range []int64{-1, 0, 1, 8} {
			if at+d >= 0 && at <= size {
				out = append(out, at+d)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestPread reads every size of file at every kind of place and length into
// memory of every alignment.
func TestPread(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		buf := make([]byte, 3<<20+64)
		want := make([]byte, 3<<20)
		for _, size := range FillSizes {
			rel := FillName(size)
			f := m.open(t, rel)
			whole := want[:min(size, int64(len(want)))]
			Fill(whole, rel, 0)
			for i, off := range borders(size) {
				for j, n := range []int64{0, 1, 5, 4095, 4096, 4097, 8192, 65537, 2<<20 + 1} {
					if size > 1<<20 && n > 0 && n < 4095 && i%2 == 1 {
						continue
					}
					shift := (i*7 + j*3) % 64 // of the destination
					b := buf[shift : int64(shift)+n]
					if n > 0 {
						b[0], b[n-1] = 0, 0 // no byte of a file's beginning or end is 0
					}
					expect := max(0, min(n, size-off))
					got, err := unix.Pread(int(f.Fd()), b, off)
					if err != nil || int64(got) != expect {
						t.Errorf("pread %s, %d bytes at %d: %d, %v, want %d", rel, n, off, got, err, expect)
						continue
					}
					if off+expect <= int64(len(whole)) && !bytes.Equal(b[:got], whole[off:off+expect]) {
						t.Errorf("pread %s, %d bytes at %d: wrong bytes", rel, n, off)
					}
				}
			}
			f.Close()
		}
	})
}

// TestReadSequential reads files in pieces that fit nothing.
func TestReadSequential(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		for _, step := range []int{1021, 4096, 70001, 1 << 20, 32 << 20} {
			for _, rel := range []string{"data/8193", "data/65537", FillName(3<<20 + 123)} {
				f := m.open(t, rel)
				var got bytes.Buffer
				b := make([]byte, step)
				for {
					n, err := unix.Read(int(f.Fd()), b)
					must(t, err)
					if n == 0 {
						break
					}
					got.Write(b[:n])
				}
				if want := m.Tree[rel].Size; int64(got.Len()) != want {
					t.Errorf("%s in pieces of %d: %d bytes, want %d", rel, step, got.Len(), want)
				}
				wantFill(t, "read in pieces", got.Bytes(), rel, 0)
				if pos, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_CUR); pos != m.Tree[rel].Size || err != nil {
					t.Errorf("%s: position %d afterwards, %v", rel, pos, err)
				}
				f.Close()
			}
		}
	})
}

// TestBigFile reads 64 MiB with one call.
func TestBigFile(t *testing.T) {
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		b := make([]byte, BigSize+1)
		f := m.open(t, Big)
		n, err := unix.Read(int(f.Fd()), b)
		if n != BigSize || err != nil {
			t.Fatalf("read: %d bytes, %v, want %d", n, err, BigSize)
		}
		wantFill(t, "read at once", b[:n], Big, 0)
	})
}

// TestReadVectors: readv and preadv2 with their flags.
func TestReadVectors(t *testing.T) {
	onViews(t, "native v8 nopages", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		f := m.open(t, rel)
		for _, c := range []struct {
			what  string
			off   int64
			sizes []int
			flags int
		}{
			{"small ones", 0, []int{1, 2, 3, 0, 4}, 0},
			{"across pages", 4000, []int{100, 4096, 8192, 1}, 0},
			{"past the end", 65530, []int{3, 3, 3, 3}, 0},
			{"at the end", 65537, []int{3, 3}, 0},
			{"without waiting", 4095, []int{8192, 10}, unix.RWF_NOWAIT},
			{"in a hurry", 4095, []int{8192, 10}, unix.RWF_HIPRI},
		} {
			if config.FS != "daxfs" && c.flags != 0 {
				continue // what is in its page cache is chance
			}
			var iovs [][]byte
			total := int64(0)
			for _, n := range c.sizes {
				iovs = append(iovs, make([]byte, n))
				total += int64(n)
			}
			expect := max(0, min(total, 65537-c.off))
			n, err := unix.Preadv2(int(f.Fd()), iovs, c.off, c.flags)
			if err != nil || int64(n) != expect {
				t.Errorf("%s: %d, %v, want %d", c.what, n, err, expect)
				continue
			}
			wantFill(t, c.what, bytes.Join(iovs, nil)[:n], rel, c.off)
		}
		iovs := [][]byte{make([]byte, 10), make([]byte, 5000)}
		if n, err := unix.Readv(int(f.Fd()), iovs); n != 5010 || err != nil {
			t.Errorf("readv: %d, %v, want 5010", n, err)
		}
		wantFill(t, "readv", bytes.Join(iovs, nil), rel, 0)
	})
}

// TestReadErrors: bad addresses, places and descriptors.
func TestReadErrors(t *testing.T) {
	onViews(t, "native v8 nopages", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		f := m.open(t, rel)
		fd := int(f.Fd())
		// Half of the memory is not there: what fits is read.
		mem := anon(t, 4*pageSize)
		must(t, mem.mprotect(2*pageSize, 2*pageSize, unix.PROT_NONE))
		n, err := unix.Pread(fd, mem.b, 3)
		if config.FS == "daxfs" && err == unix.EFAULT {
			t.Errorf("read into memory that ends half way: %v, want a short read", err)
		} else if err != nil || n > 2*pageSize {
			t.Errorf("read into memory that ends half way: %d, %v, want at most %d", n, err, 2*pageSize)
		} else {
			wantFill(t, "short read", mem.b[:n], rel, 3)
		}
		if n, err := unix.Pread(fd, mem.b[2*pageSize:], 0); err != unix.EFAULT {
			t.Errorf("read into memory that is not there: %d, %v, want %v", n, err, unix.EFAULT)
		}
		if n, err := unix.Pread(fd, make([]byte, 1), -1); err != unix.EINVAL {
			t.Errorf("read at -1: %d, %v, want %v", n, err, unix.EINVAL)
		}
		if n, err := unix.Pread(fd, make([]byte, 1), 1<<62); n != 0 || err != nil {
			t.Errorf("read at 2^62: %d, %v, want the end", n, err)
		}
		if n, err := unix.Pread(fd, make([]byte, 1), 1<<63-1); n > 0 {
			t.Errorf("read at 2^63-1: %d, %v", n, err)
		}
	})
}

// TestSplice: pipes, sockets and files are filled without a copy in between.
func TestSplice(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		dir := scratch(t)
		for _, rel := range []string{"data/1", "data/4097", "data/65537", FillName(2<<20 + 1)} {
			size := int(m.Tree[rel].Size)
			for _, off := range []int64{0, 1, 4095} {
				if off >= int64(size) {
					continue
				}
				f := m.open(t, rel)

				r, w := pipe(t)
				got := make([]byte, 0, size)
				pos := off
				for {
					n, err := unix.Splice(int(f.Fd()), &pos, int(w.Fd()), nil, 1<<16, 0)
					if err != nil {
						t.Fatalf("splice %s at %d: %v", rel, pos, err)
					}
					if n == 0 {
						break
					}
					b := make([]byte, n)
					if _, err := io.ReadFull(r, b); err != nil {
						t.Fatal(err)
					}
					got = append(got, b...)
				}
				if len(got) != size-int(off) {
					t.Errorf("splice %s from %d: %d bytes, want %d", rel, off, len(got), size-int(off))
				}
				wantFill(t, "splice", got, rel, off)

				out, err := os.Create(filepath.Join(dir, "out"))
				must(t, err)
				pos = off
				for pos < int64(size) {
					n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), &pos, size)
					if err != nil || n == 0 {
						t.Fatalf("sendfile %s at %d: %d, %v", rel, pos, n, err)
					}
				}
				b, err := os.ReadFile(out.Name())
				must(t, err)
				if len(b) != size-int(off) {
					t.Errorf("sendfile %s from %d: %d bytes, want %d", rel, off, len(b), size-int(off))
				}
				wantFill(t, "sendfile", b, rel, off)
				out.Close()
				f.Close()
			}
		}

		// A socket, and a pipe read twice by tee.
		const rel = "data/8193"
		f := m.open(t, rel)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(t, err)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		pos := int64(0)
		if n, err := unix.Sendfile(pair[0], int(f.Fd()), &pos, 8193); n != 8193 || err != nil {
			t.Errorf("sendfile to a socket: %d, %v", n, err)
		}
		b := make([]byte, 8193)
		if _, err := io.ReadFull(os.NewFile(uintptr(dup(t, pair[1])), "socket"), b); err != nil {
			t.Error(err)
		}
		wantFill(t, "sendfile to a socket", b, rel, 0)

		r, w := pipe(t)
		r2, w2 := pipe(t)
		pos = 0
		if n, err := unix.Splice(int(f.Fd()), &pos, int(w.Fd()), nil, 8193, 0); n != 8193 || err != nil {
			t.Fatalf("splice: %d, %v", n, err)
		}
		if n, err := unix.Tee(int(r.Fd()), int(w2.Fd()), 8193, 0); n != 8193 || err != nil {
			t.Errorf("tee: %d, %v", n, err)
		}
		for _, end := range []*os.File{r, r2} {
			if _, err := io.ReadFull(end, b); err != nil {
				t.Error(err)
			}
			wantFill(t, "tee", b, rel, 0)
		}
	})
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.Dup(fd)
	must(t, err)
	return n
}

// TestCopyFileRange: Linux copies inside one file system only; who asks for
// more copies by itself, as cp and Go do.
func TestCopyFileRange(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		f := m.open(t, rel)
		out, err := os.Create(filepath.Join(scratch(t), "out"))
		must(t, err)
		defer out.Close()
		if n, err := unix.CopyFileRange(int(f.Fd()), nil, int(out.Fd()), nil, 65537, 0); !errors.Is(err, unix.EXDEV) {
			t.Errorf("copy_file_range to tmpfs: %d, %v, want %v", n, err, unix.EXDEV)
		}
		if n, err := io.Copy(out, f); n != 65537 || err != nil {
			t.Errorf("copy: %d, %v, want 65537", n, err)
		}
		b, err := os.ReadFile(out.Name())
		must(t, err)
		wantFill(t, "copy", b, rel, 0)
	})
}

// TestDirect: O_DIRECT is accepted, as on all file systems with DAX, and asks
// for no alignment.
func TestDirect(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/8193"
		fd, err := unix.Open(m.path(rel), unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatalf("open with O_DIRECT: %v", err)
		}
		defer unix.Close(fd)
		mem := anon(t, 4*pageSize)
		for _, c := range []struct{ at, off, n int }{{0, 0, 4096}, {0, 4096, 4096}, {0, 8192, 4096}, {1, 3, 5000}, {0, 0, 8193}} {
			want := min(c.n, 8193-c.off)
			n, err := unix.Pread(fd, mem.b[c.at:c.at+c.n], int64(c.off))
			if n != want || err != nil {
				t.Errorf("%d bytes at %d: %d, %v, want %d", c.n, c.off, n, err, want)
				continue
			}
			wantFill(t, "direct", mem.b[c.at:c.at+n], rel, int64(c.off))
		}
	})
}

// TestAdvice: hints about reading succeed and change nothing.
func TestAdvice(t *testing.T) {
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		f := m.open(t, rel)
		for _, a := range []struct {
			name   string
			advice int
		}{
			{"NORMAL", unix.FADV_NORMAL}, {"RANDOM", unix.FADV_RANDOM}, {"SEQUENTIAL", unix.FADV_SEQUENTIAL},
			{"WILLNEED", unix.FADV_WILLNEED}, {"DONTNEED", unix.FADV_DONTNEED}, {"NOREUSE", unix.FADV_NOREUSE},
		} {
			if err := unix.Fadvise(int(f.Fd()), 0, 65537, a.advice); err != nil {
				t.Errorf("fadvise %s: %v", a.name, err)
			}
			b := make([]byte, 65537)
			if n, err := unix.Pread(int(f.Fd()), b, 0); n != len(b) || err != nil {
				t.Errorf("read after %s: %d, %v", a.name, n, err)
			}
			wantFill(t, a.name, b, rel, 0)
		}
		// readahead(2) may say that there is nothing to be read ahead.
		if _, _, e := unix.Syscall(unix.SYS_READAHEAD, f.Fd(), 0, 65537); e != 0 && e != unix.EINVAL {
			t.Errorf("readahead: %v, want success or %v", e, unix.EINVAL)
		}
	})
}

// TestSeekData: a file is all data.
func TestSeekData(t *testing.T) {
	onViews(t, "native v8 nopages", func(t *testing.T, m *mounted) {
		f := m.open(t, "data/8193")
		for _, c := range []struct {
			whence int
			off    int64
			want   int64
			err    error
		}{
			{unix.SEEK_DATA, 0, 0, nil},
			{unix.SEEK_DATA, 5000, 5000, nil},
			{unix.SEEK_DATA, 8192, 8192, nil},
			{unix.SEEK_DATA, 8193, -1, unix.ENXIO},
			{unix.SEEK_DATA, 1 << 40, -1, unix.ENXIO},
			{unix.SEEK_HOLE, 0, 8193, nil},
			{unix.SEEK_HOLE, 8192, 8193, nil},
			{unix.SEEK_HOLE, 8193, -1, unix.ENXIO},
			{unix.SEEK_END, -1, 8192, nil},
			{unix.SEEK_END, 10, 8203, nil},
			{unix.SEEK_SET, -1, -1, unix.EINVAL},
		} {
			got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
			if !errors.Is(err, c.err) || err == nil && got != c.want {
				t.Errorf("lseek %d, whence %d: %d, %v, want %d, %v", c.off, c.whence, got, err, c.want, c.err)
			}
		}
	})
}

// TestReadIntoItself reads a file into a private mapping of the same file, so
// that the copy faults on what it copies from.
func TestReadIntoItself(t *testing.T) {
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		f := m.open(t, rel)
		mem := mapFile(t, f, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		const n = 65536 - 100
		got, err := unix.Pread(int(f.Fd()), mem.b[:n], 100)
		if got != n || err != nil {
			t.Fatalf("read: %d, %v, want %d", got, err, n)
		}
		wantFill(t, "read into itself", mem.b[:n], rel, 100)
		wantFill(t, "rest of the mapping", mem.b[n:], rel, n)
		shared := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
		if got, err := unix.Pread(int(f.Fd()), shared.b, 0); err != unix.EFAULT {
			t.Errorf("read into a shared mapping: %d, %v, want %v", got, err, unix.EFAULT)
		}
		m.wantUnchanged(t, rel)
	})
}

// TestIoctls that file systems do not have.
func TestIoctls(t *testing.T) {
	onViews(t, "native", func(t *testing.T, m *mounted) {
		f := m.open(t, "data/8193")
		var n int32
		if _, err := ioctl(int(f.Fd()), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); err != nil || n != 8193 {
			t.Errorf("FIONREAD: %d, %v, want 8193", n, err)
		}
		var size int32
		const figetbsz = 2
		if _, err := ioctl(int(f.Fd()), figetbsz, uintptr(unsafe.Pointer(&size))); err != nil || size != pageSize {
			t.Errorf("FIGETBSZ: %d, %v, want %d", size, err, pageSize)
		}
		var flags int64
		for _, c := range []struct {
			name string
			req  uintptr
		}{{"an unknown one", 0x4499}, {"FS_IOC_SETFLAGS", unix.FS_IOC_SETFLAGS}} {
			if _, err := ioctl(int(f.Fd()), c.req, uintptr(unsafe.Pointer(&flags))); !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: %v, want %v", c.name, err, unix.ENOTTY)
			}
		}
	})
}
