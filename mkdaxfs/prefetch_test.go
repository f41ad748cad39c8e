package mkdaxfs_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func TestReadPrefetch(t *testing.T) {
	long := strings.Repeat("x", 16<<10)
	for _, tt := range []struct {
		name, list string
		want       []string
		err        string
	}{
		{name: "empty"},
		{name: "comments", list: "# a\n\n  \n\t# b\n"},
		{name: "order", list: "/b\n/a\n/c\n/b", want: []string{"b", "a", "c"}},
		{name: "not clean", list: "//usr/./bin//sh/\nusr/bin/sh\n./x", want: []string{"usr/bin/sh", "x"}},
		{name: "white", list: " \t/a b \t\r\n/c\r\n", want: []string{"a b", "c"}},
		{name: "quoted", list: `"/a\nb"` + "\n" + `"/\xff "` + "\n" + `"#x"`, want: []string{"a\nb", "\xff ", "#x"}},
		{name: "dots in names", list: "/..a/b..", want: []string{"..a/b.."}},
		{name: "not UTF-8", list: "/\xff\xfe", want: []string{"\xff\xfe"}},

		{name: "dot dot", list: "/a\n/b/../c\n", err: `line 2: "/b/../c" has a ".."`},
		{name: "relative dot dot", list: "..", err: `line 1: ".." has a ".."`},
		{name: "NUL", list: "/a\x00", err: `line 1: "/a\x00" has a NUL`},
		{name: "quoted NUL", list: "#\n" + `"/a\000"`, err: `line 2: "/a\x00" has a NUL`},
		{name: "open quote", list: `"/a`, err: `line 1: "\"/a" is not a quoted string`},
		{name: "behind the quote", list: `"/a" x`, err: `line 1: "\"/a\" x" is not a quoted string`},
		{name: "empty quote", list: `""`, err: `line 1: "" names no file`},
		{name: "root", list: "/a\n/.", err: `line 2: "/." names no file`},
		{name: "long", list: "/a\n/" + long + "\n", err: "line 2: more than 16384 bytes"},
		{name: "many", list: manyPaths(1<<20 + 1), err: "line 1048577: more than 1048576 paths"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mkdaxfs.ReadPrefetch(strings.NewReader(tt.list))
			if tt.err == "" {
				if err != nil || !slices.Equal(got, tt.want) {
					t.Fatalf("%q %v, want %q", got, err, tt.want)
				}
				return
			}
			if !errors.Is(err, mkdaxfs.ErrInvalidPrefetch) || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%v, want ErrInvalidPrefetch", err)
			}
			if want := tt.err + ": invalid prefetch list"; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		})
	}
	_, err := mkdaxfs.ReadPrefetch(io.MultiReader(strings.NewReader("/a\n"), failing{}))
	if !errors.Is(err, errBroken) || errors.Is(err, mkdaxfs.ErrInvalidPrefetch) {
		t.Errorf("broken reader: %v", err)
	}
}

func manyPaths(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteByte('/')
		for ; i > 0; i /= 26 {
			b.WriteByte(byte('a' + i%26))
		}
		b.WriteString("x\n")
	}
	return b.String()
}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

// What WritePrefetch writes, ReadPrefetch reads, one line a path.
func FuzzPrefetch(f *testing.F) {
	for _, p := range []string{"usr/bin/sh", "a b", " a", "a ", "\"", "#", "a\nb", "\xff", "\u2028", "\ufeff", "a\tb", "a\r", `a\b`, "日本"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		// A path as the kernel and our trees have them.
		if strings.IndexByte(p, 0) >= 0 || len(p) > 4095 {
			return
		}
		for name := range strings.SplitSeq(p, "/") {
			if name == "" || name == "." || name == ".." {
				return
			}
		}
		var b bytes.Buffer
		if err := mkdaxfs.WritePrefetch(&b, []string{p, "/z"}); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(b.String(), "\n"); n != 2 {
			t.Fatalf("%q: %d lines, want 2", b.String(), n)
		}
		got, err := mkdaxfs.ReadPrefetch(&b)
		want := []string{p, "z"}
		if p == "z" {
			want = want[:1]
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q %v, want %q", got, err, want)
		}
	})
}

// Hot files are dense whatever their size, also where an ordinary image would
// align them to 2 MiB; the others are laid as ever. The tree stays the same.
func TestPrefetchLayout(t *testing.T) {
	const mib = 1 << 20
	make := func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		root := dir()
		root.Set("a", file(t, b, pattern(5000, 1)))
		big := file(t, b, pattern(40*mib+1, 2))
		root.Set("big", big)
		root.Set("big2", big) // a hard link
		root.Set("cold", file(t, b, pattern(40*mib, 3)))
		sub := dir()
		sub.Set("x", file(t, b, pattern(1, 4)))
		sub.Set("empty", file(t, b, nil))
		sub.Set("same", file(t, b, pattern(5000, 1)))
		root.Set("sub", sub)
		link := func(to string) *mkdaxfs.Node { return &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: to} }
		root.Set("abs", link("/sub/up"))
		root.Set("loop", link("loop"))
		sub.Set("up", link("../../sub/../big"))
		tr := &mkdaxfs.Tree{Root: root}
		tr.Sort()
		return tr
	}
	list := []string{"sub/x", "abs", "/a", "big2", "loop", "big/x", "sub", "sub/empty", "none", "sub/x"}
	for _, tt := range []struct {
		name string
		opts mkdaxfs.BuildOptions
	}{
		{"native", mkdaxfs.BuildOptions{}},
		{"v8", mkdaxfs.BuildOptions{V8: true}},
		{"shared", mkdaxfs.BuildOptions{Share: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, plain, _ := build(t, tt.opts, make)
			tt.opts.Prefetch = list
			f, img, stats := build(t, tt.opts, make)
			sameLines(t, "plain", ownLines(t, plain), ownLines(t, img))
			if !tt.opts.V8 {
				sameLines(t, "go-erofs", ownLines(t, img), erofsLines(t, io.NewSectionReader(f, 0, stats.Size)))
			}
			at := func(p string) uint64 { return statInode(t, img, p).DataOffset }
			start := img.Superblock().DataOffset
			for _, h := range []struct {
				path string
				size uint64
			}{{"sub/x", 1}, {"big", 40*mib + 1}, {"a", 5000}} {
				if at(h.path) != start {
					t.Errorf("%s is at %d, want %d", h.path, at(h.path), start)
				}
				start += disk.AlignUp(h.size, disk.BlockSize)
			}
			if cold := at("cold") + disk.BlockSize; cold < start || cold%disk.HugeSize != 0 {
				t.Errorf("cold file at address %d, want a multiple of %d behind %d", cold, disk.HugeSize, start)
			}
			if shared := at("sub/same") == at("a"); shared != tt.opts.Share {
				t.Errorf("equal files share data: %v, want %v", shared, tt.opts.Share)
			}
			got := *stats.Prefetch
			meta := disk.BlockSize + stats.MetaBytes
			want := mkdaxfs.PrefetchStats{
				Listed: 10, Files: 3, Bytes: 40*mib + 1 + 5000 + 1, Offset: meta, End: meta + 40*mib + 4*disk.BlockSize,
				Missing: 3, NotFiles: 1, Empty: 1, Repeated: 2, FirstMissing: "loop",
			}
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
			again, _, _ := build(t, tt.opts, make)
			if hashReader(t, io.NewSectionReader(f, 0, stats.Size)) != hashReader(t, io.NewSectionReader(again, 0, stats.Size)) {
				t.Error("the same tree and list give other bytes")
			}
		})
	}
}

func statInode(t *testing.T, img *mkdaxfs.Image, p string) *disk.Inode {
	t.Helper()
	fi, err := img.FS().Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*disk.Inode)
}
