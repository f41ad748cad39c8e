package mkdaxfs_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// v8Reader reads an image the way the public module does, from facts of layout
// alone (docs/format.md, "v8"): nothing of this package is used.
type v8Reader struct {
	t testing.TB
	b []byte
	// used counts the records over each byte.
	used []byte
}

func (v *v8Reader) u32(off uint64) uint32 { return le.Uint32(v.b[off:]) }
func (v *v8Reader) u64(off uint64) uint64 { return le.Uint64(v.b[off:]) }

func (v *v8Reader) claim(what string, off, n uint64) []byte {
	v.t.Helper()
	if off+n > uint64(len(v.b)) {
		v.t.Fatalf("%s: [%d,+%d) outside of %d bytes", what, off, n, len(v.b))
	}
	for i := off; i < off+n; i++ {
		if v.used[i] != 0 {
			v.t.Fatalf("%s: byte %d belongs to something else too", what, i)
		}
		v.used[i] = 1
	}
	return v.b[off : off+n]
}

// read returns names and what they hold.
func (v *v8Reader) read() map[string]string {
	v.t.Helper()
	v.used = make([]byte, len(v.b))
	base, inodes := v.u64(24), v.u64(40)
	for _, f := range []struct {
		name      string
		got, want uint64
	}{
		{"magic", uint64(v.u32(0)), 0x64617835}, {"version", uint64(v.u32(4)), 8}, {"block size", uint64(v.u32(8)), 4096}, {"reserved", uint64(v.u32(12)), 0},
		{"total size", v.u64(16), uint64(len(v.b))}, {"base offset", base, 4096}, {"base size", v.u64(32), uint64(len(v.b)) - 4096}, {"root", uint64(v.u32(52)), 1},
	} {
		if f.got != f.want {
			v.t.Errorf("superblock: %s is %#x, want %#x", f.name, f.got, f.want)
		}
	}
	// No overlay, no page cache, nothing behind the frame.
	if !bytes.Equal(v.b[64:4096], make([]byte, 4096-64)) {
		v.t.Error("superblock: bytes behind the data offset are not zero")
	}
	v.claim("superblock", 0, 4096)
	count := v.u32(48)
	v.claim("inode table", base+inodes, uint64(count)*64)
	out := make(map[string]string)
	seen := make(map[uint32]bool)
	var walk func(path string, ino uint32)
	walk = func(path string, ino uint32) {
		if ino == 0 || ino > count {
			v.t.Fatalf("%q: inode %d of %d", path, ino, count)
		}
		in := base + inodes + uint64(ino-1)*64
		if v.u32(in) != ino {
			v.t.Errorf("%q: inode %d says it is %d", path, ino, v.u32(in))
		}
		mode, size, data := v.u32(in+4), v.u64(in+16), base+v.u64(in+24)
		first := !seen[ino]
		seen[ino] = true
		switch mode & 0o170000 {
		case 0o040000:
			n := size / 271 // the module's count
			if size%271 != 0 {
				v.t.Errorf("%q: size %d", path, size)
			}
			b := v.claim(path, data, n*272) // and its stride
			for i := range n {
				e := b[i*272:]
				name := string(e[16 : 16+le.Uint16(e[8:])])
				child := le.Uint32(e)
				if m := v.u32(base + inodes + uint64(child-1)*64 + 4); le.Uint32(e[4:])&0o170000 != m&0o170000 {
					v.t.Errorf("%q: mode %o in the entry, %o in the inode", name, le.Uint32(e[4:]), m)
				}
				if !bytes.Equal(e[10:16], make([]byte, 6)) || !bytes.Equal(e[16+len(name):272], make([]byte, 256-len(name))) {
					v.t.Errorf("%q: reserved bytes or padding are not zero", name)
				}
				walk(path+"/"+name, child)
			}
			out[path] = fmt.Sprintf("directory of %d", n)
		case 0o120000:
			b := v.b[data : data+size+1]
			if first {
				v.claim(path, data, size+1)
			}
			if b[size] != 0 || bytes.IndexByte(b, 0) != int(size) {
				v.t.Errorf("%q: symlink is not followed by its NUL", path)
			}
			out[path] = "-> " + string(b[:size])
		case 0o100000:
			if size > 0 && (data%4096 != 0 || data < base+v.u64(56)) {
				v.t.Errorf("%q: data at %d, data offset %d", path, data, base+v.u64(56))
			}
			if size > 0 && first {
				v.claim(path, data, size)
			}
			out[path] = string(v.b[data : data+size])
		default:
			v.t.Errorf("%q: mode %o", path, mode)
		}
	}
	walk("", 1)
	if len(seen) != int(count) {
		v.t.Errorf("%d inodes have names, the table has %d", len(seen), count)
	}
	return out
}

// TestV8Structure reads v8 images the public module's way, with directories at
// the sizes where 271 and 272 bytes an entry part: public builders lose the
// last name of one with 272.
func TestV8Structure(t *testing.T) {
	sizes := []int{0, 1, 135, 136, 271, 272, 273}
	r := newRaw(t, mkdaxfs.BuildOptions{V8: true}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		root := dir()
		for _, n := range sizes {
			d := dir()
			root.Set(fmt.Sprint(n), d)
			for i := range n {
				if i%50 == 7 {
					d.Set(fmt.Sprintf("%03d-link", i), &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: fmt.Sprintf("target %d", i)})
					continue
				}
				d.Set(fmt.Sprintf("%03d", i), file(t, b, []byte(fmt.Sprintf("%d/%d", n, i))))
			}
		}
		hard := file(t, b, pattern(10000, 3))
		hard.SetXattrs([]disk.Xattr{{Name: "user.hidden", Value: "here"}})
		root.Set("hard1", hard)
		root.Set("hard2", hard)
		root.Set("empty", file(t, b, nil))
		root.Set(string(bytes.Repeat([]byte("n"), 255)), file(t, b, []byte("long")))
		tr := &mkdaxfs.Tree{Root: root}
		tr.Sort()
		return tr
	})
	got := (&v8Reader{t: t, b: r.b}).read()
	for _, n := range sizes {
		if d := got["/"+fmt.Sprint(n)]; d != fmt.Sprintf("directory of %d", n) {
			t.Errorf("%d names: %s", n, d)
		}
		in := disk.DecodeInode(r.inodeAt(r.ino(fmt.Sprint(n))))
		if in.Size != uint64(271*n) || disk.DirBytes(in.Size, true) != uint64(272*n) {
			t.Errorf("%d names: size %d, %d bytes", n, in.Size, disk.DirBytes(in.Size, true))
		}
		for i := range n {
			name, want := fmt.Sprintf("/%d/%03d", n, i), fmt.Sprintf("%d/%d", n, i)
			if i%50 == 7 {
				name, want = name+"-link", fmt.Sprintf("-> target %d", i)
			}
			if got[name] != want {
				t.Errorf("%s is %q, want %q", name, got[name], want)
			}
		}
	}
	if got["/hard1"] != got["/hard2"] || len(got["/hard1"]) != 10000 {
		t.Error("hard links differ")
	}
	// Attributes are carried where only our readers look.
	xs, err := r.open().FS().Xattrs("hard1")
	if err != nil || len(xs) != 1 || xs[0].Value != "here" {
		t.Errorf("xattrs %v, %v", xs, err)
	}
}
