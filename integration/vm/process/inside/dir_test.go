package inside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dirent is a struct linux_dirent64. off is the place behind it.
type dirent struct {
	ino  uint64
	off  int64
	typ  uint8
	name string
}

// getdents returns what one call does.
func getdents(fd int, buf []byte) ([]dirent, error) {
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return nil, err
	}
	var out []dirent
	for b := buf[:n]; len(b) > 0; {
		reclen := binary.LittleEndian.Uint16(b[16:])
		name := b[19:reclen]
		out = append(out, dirent{
			ino:  binary.LittleEndian.Uint64(b),
			off:  int64(binary.LittleEndian.Uint64(b[8:])),
			typ:  b[18],
			name: string(name[:bytes.IndexByte(name, 0)]),
		})
		b = b[reclen:]
	}
	return out, nil
}

// rest reads a directory to its end.
func rest(t *testing.T, f *os.File, buffer int) []dirent {
	t.Helper()
	var out []dirent
	for {
		d, err := getdents(int(f.Fd()), make([]byte, buffer))
		if err != nil {
			t.Fatalf("getdents of %s into %d bytes: %v", f.Name(), buffer, err)
		}
		if len(d) == 0 {
			return out
		}
		out = append(out, d...)
	}
}

func seek(t *testing.T, f *os.File, off int64) {
	t.Helper()
	if got, err := unix.Seek(int(f.Fd()), off, unix.SEEK_SET); got != off || err != nil {
		t.Fatalf("lseek %s to %d: %d, %v", f.Name(), off, got, err)
	}
}

func namesOf(ds []dirent) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.name
	}
	return out
}

// TestDirents: readdir names what the source has, once, with the numbers and
// types that stat has.
func TestDirents(t *testing.T) {
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		dirs := map[string]map[string]bool{}
		for path, e := range m.Tree {
			if e.IsDir() && dirs[path] == nil {
				dirs[path] = map[string]bool{}
			}
			if path == "." {
				continue
			}
			parent := filepath.Dir(path)
			if dirs[parent] == nil {
				dirs[parent] = map[string]bool{}
			}
			dirs[parent][filepath.Base(path)] = true
		}
		for rel, want := range dirs {
			f := m.open(t, rel)
			ds := rest(t, f, 32<<10)
			f.Close()
			if len(ds) != len(want)+2 {
				t.Errorf("%q has %d names, want %d and . and ..", rel, len(ds), len(want))
			}
			seen := map[string]bool{}
			for _, d := range ds {
				if seen[d.name] {
					t.Errorf("%q: name %q twice", rel, d.name)
				}
				seen[d.name] = true
				if !want[d.name] && d.name != "." && d.name != ".." {
					t.Errorf("%q: name %q, which the source does not have", rel, d.name)
				}
				if d.name == ".." && rel == "." {
					continue // what the mount point's parent is, is not ours
				}
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(m.root, rel, d.name), &st); err != nil {
					t.Errorf("lstat %q in %q: %v", d.name, rel, err)
					continue
				}
				if d.ino != st.Ino || uint32(d.typ) != st.Mode>>12 {
					t.Errorf("%q in %q: readdir says inode %d, type %d; stat %d, %d", d.name, rel, d.ino, d.typ, st.Ino, st.Mode>>12)
				}
			}
		}
	})
}

// TestReaddirBuffers: the same names come out of buffers of every size.
func TestReaddirBuffers(t *testing.T) {
	onViews(t, "native v8 overlay", func(t *testing.T, m *mounted) {
		for rel, smallest := range map[string]int{"names": 280, "many": 48, "data": 32, "empty": 24, ".": 32} {
			f := m.open(t, rel)
			all := rest(t, f, 1<<20)
			if rel == "many" && len(all) != ManyNames+2 {
				t.Errorf("many has %d names, want %d", len(all)-2, ManyNames)
			}
			// 280 bytes take a name of 255 with its header.
			for _, size := range []int{smallest, smallest + 8, 600, 4096, 32 << 10} {
				seek(t, f, 0)
				if got := rest(t, f, size); !reflect.DeepEqual(got, all) {
					t.Errorf("%s in buffers of %d bytes: %d names, want the same %d", rel, size, len(got), len(all))
				}
			}
			seek(t, f, 0)
			if _, err := getdents(int(f.Fd()), make([]byte, 20)); !errors.Is(err, unix.EINVAL) {
				t.Errorf("getdents of %s into 20 bytes: %v, want %v", rel, err, unix.EINVAL)
			}
		}
	})
}

// TestReaddirSeek: behind each place that readdir has named come the names that
// came behind it before, also through another descriptor, after the kernel has
// forgotten the directory, and in a later mount.
func TestReaddirSeek(t *testing.T) {
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		for rel, step := range map[string]int{"names": 1, "many": 97, "data": 1, "empty": 1, ".": 1} {
			f := m.open(t, rel)
			all := rest(t, f, 32<<10)
			check := func(what string, f *os.File) {
				for i := 0; i < len(all); i += step {
					seek(t, f, all[i].off)
					if got := rest(t, f, 32<<10); !reflect.DeepEqual(namesOf(got), namesOf(all[i+1:])) {
						t.Errorf("%s: %s, behind name %d of %d: %d names, want %d", rel, what, i, len(all), len(got), len(all)-i-1)
					}
				}
			}
			check("same descriptor", f)
			// Backwards, one name at a time.
			for i := len(all) - 2; i >= 0; i -= step {
				seek(t, f, all[i].off)
				got, err := getdents(int(f.Fd()), make([]byte, 512))
				if err != nil || len(got) == 0 || got[0] != all[i+1] {
					t.Errorf("%s: one name behind name %d: %v, %v, want %v", rel, i, got, err, all[i+1])
				}
			}
			f.Close()
			dropCaches(t)
			check("after drop_caches", m.open(t, rel))
			if config.FS == "daxfs" {
				check("another mount", open(t, filepath.Join(mountDaxfs(t, m.image, m.options), rel)))
			}
		}
	})
}

// TestReaddirBadSeek: places that never were named are no way into the kernel:
// there are no names, or some of the directory's, and no more than it has.
func TestReaddirBadSeek(t *testing.T) {
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		f := m.open(t, "names")
		known := map[string]bool{}
		all := rest(t, f, 32<<10)
		for _, d := range all {
			known[d.name] = true
		}
		for _, off := range []int64{1, 2, 3, 5, 7, 11, 12, 271, 272, 4095, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 40, math.MaxInt64 - 1, math.MaxInt64} {
			if _, err := unix.Seek(int(f.Fd()), off, unix.SEEK_SET); err != nil {
				continue // refusing it is as good
			}
			var got []dirent
			for range len(all) {
				d, err := getdents(int(f.Fd()), make([]byte, 4096))
				if err != nil || len(d) == 0 {
					break
				}
				got = append(got, d...)
			}
			if len(got) > len(all) {
				t.Errorf("seek to %d: %d names, the directory has %d", off, len(got), len(all))
			}
			for _, d := range got {
				if !known[d.name] {
					t.Errorf("seek to %d: name %q, which is not there", off, d.name)
				}
			}
		}
		if _, err := unix.Seek(int(f.Fd()), -1, unix.SEEK_SET); err != unix.EINVAL {
			t.Errorf("seek to -1: %v, want %v", err, unix.EINVAL)
		}
	})
}

// TestReaddirBadBuffer: a buffer that cannot be written to is the caller's
// fault.
func TestReaddirBadBuffer(t *testing.T) {
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		f := m.open(t, "many")
		p, err := tryMapAnon(2*pageSize, unix.PROT_READ)
		must(t, err)
		defer p.unmap()
		if n, err := unix.Getdents(int(f.Fd()), p.b); err != unix.EFAULT {
			t.Errorf("getdents into read-only memory: %d, %v, want %v", n, err, unix.EFAULT)
		}
	})
}

// TestLookup finds what is there and nothing else.
func TestLookup(t *testing.T) {
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		stat := func(rel string) error {
			var st unix.Stat_t
			return unix.Lstat(m.root+"/"+rel, &st)
		}
		for round := range 2 { // the second time from the kernel's cache
			for i := 0; i < ManyNames; i += 7 {
				if err := stat("many/" + ManyName(i)); err != nil {
					t.Errorf("round %d: name %d of many: %v", round, i, err)
				}
			}
			for path := range m.Tree {
				if err := stat(path); err != nil {
					t.Errorf("round %d: %q: %v", round, path, err)
				}
			}
		}
		misses := []string{
			"\x01", "\x01\x01", "zzzz", "\xff\xff\xff", "n", "many", "0", "0-0", "~",
			strings.Repeat("n", 254), strings.Repeat("m", 255), strings.Repeat("o", 255),
		}
		for i := 0; i < ManyNames; i += 501 {
			n := ManyName(i)
			misses = append(misses, n+"x", n[:len(n)-1]+"\x01", "x"+n, n[1:])
		}
		for _, dir := range []string{"many", "names", "empty", "acl"} {
			for _, name := range misses {
				path := dir + "/" + name
				if _, there := m.Tree[path]; there {
					continue
				}
				if err := stat(path); !errors.Is(err, unix.ENOENT) {
					t.Errorf("%q: %v, want %v", path, err, unix.ENOENT)
				}
			}
		}
		for _, c := range []struct {
			path string
			want error
		}{
			{"names/" + strings.Repeat("n", 255), nil},
			{"names/" + strings.Repeat("n", 256), unix.ENAMETOOLONG},
			{"types/file/x", unix.ENOTDIR},
			{"types/file/", unix.ENOTDIR},
			{"types/fifo/x", unix.ENOTDIR},
			{"empty/.", nil},
			{"empty/..", nil},
			{"links/sub/../../types/./file", nil},
		} {
			if m.image == ImageV8 && strings.Contains(c.path, "fifo") {
				continue // v8 cannot say it
			}
			if err := stat(c.path); !errors.Is(err, c.want) {
				t.Errorf("%q: %v, want %v", c.path, err, c.want)
			}
		}
	})
}

// TestLookupAfterForgetting: names found again after the kernel dropped them
// lead to the same inodes.
func TestLookupAfterForgetting(t *testing.T) {
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		inode := func(i int) (st unix.Stat_t) {
			must(t, unix.Stat(m.path("many/"+ManyName(i)), &st))
			return st
		}
		before := map[int]unix.Stat_t{}
		for i := 0; i < ManyNames; i += 41 {
			before[i] = inode(i)
		}
		for range 3 {
			dropCaches(t)
			for i, want := range before {
				if got := inode(i); got != want {
					t.Fatalf("name %d: %+v after drop_caches, was %+v", i, got, want)
				}
			}
		}
	})
}

// TestOpenDirectory: what a descriptor of a directory can do besides.
func TestOpenDirectory(t *testing.T) {
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		f := m.open(t, "data")
		if n, err := unix.Read(int(f.Fd()), make([]byte, 8)); err != unix.EISDIR {
			t.Errorf("read: %d, %v, want %v", n, err, unix.EISDIR)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE); err != unix.ENODEV {
			t.Errorf("mmap: %v, want %v", err, unix.ENODEV)
		}
		for _, size := range FillSizes {
			var st unix.Stat_t
			if err := unix.Fstatat(int(f.Fd()), fmt.Sprint(size), &st, 0); err != nil || st.Size != size {
				t.Errorf("fstatat %d: size %d, %v", size, st.Size, err)
			}
		}
		if _, err := unix.Open(m.path("types/file"), unix.O_RDONLY|unix.O_DIRECTORY, 0); err != unix.ENOTDIR {
			t.Errorf("open a file with O_DIRECTORY: %v, want %v", err, unix.ENOTDIR)
		}
	})
}
