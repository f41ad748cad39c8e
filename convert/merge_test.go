package convert

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func mergeLayers(t testing.TB, s Store, layers ...[]ent) (*mkdaxfs.Tree, error) {
	t.Helper()
	var trees []*mkdaxfs.Tree
	for _, l := range layers {
		trees = append(trees, layerTree(t, s, l...))
	}
	return Merge(trees)
}

// TestMerge shows what stacks of layers become.
func TestMerge(t *testing.T) {
	root := mkd("./")
	type layers [][]ent
	for _, tt := range []struct {
		name   string
		layers layers
		want   string
	}{
		{"one layer", layers{{root, mkd("d"), reg("d/f", "x"), lnk("h", "d/f")}}, `
			./
			d/
			d/f "x"
			h "x" == d/f`},
		{"no root entry anywhere", layers{{reg("f", "")}, {}}, `
			./ time=0.0
			f ""`},
		{"root's metadata from the highest layer that has any", layers{{mkd("./").mode(0o700)}, {mkd("./").mode(0o711).xattr("user.r", "1")}, {reg("f", "")}}, `
			./ mode=711 user.r="1"
			f ""`},
		{"add, replace, keep", layers{{root, reg("a", "1"), reg("b", "1")}, {reg("b", "2"), reg("c", "2")}}, `
			./
			a "1"
			b "2"
			c "2"`},
		{"whiteouts", layers{{root, reg("f", "1"), mkd("d"), reg("d/x", "1"), sym("s", "t")}, {reg(".wh.f", ""), reg(".wh.d", ""), reg(".wh.s", "")}}, `
			./`},
		{"whiteout of nothing", layers{{root}, {reg(".wh.f", ""), reg("no/such/.wh.f", "")}}, `
			./
			no/ time=0.0
			no/such/ time=0.0`},
		{"whiteout in the lowest layer", layers{{root, reg(".wh.f", "")}}, `./`},
		{"whiteout, then made again above", layers{{root, mkd("d").mode(0o700), reg("d/x", "1")}, {reg(".wh.d", "")}, {reg("d/y", "3")}}, `
			./
			d/ time=0.0
			d/y "3"`},
		{"made again in the layer that whites out, whiteout first", layers{{root, reg("f", "old"), mkd("d").mode(0o700), reg("d/x", "1")}, {reg(".wh.f", ""), reg("f", "new"), reg(".wh.d", ""), mkd("d"), reg("d/y", "2")}}, `
			./
			d/
			d/y "2"
			f "new"`},
		{"made again in the layer that whites out, whiteout last", layers{{root, reg("f", "old"), mkd("d").mode(0o700), reg("d/x", "1")}, {reg("f", "new"), reg(".wh.f", ""), mkd("d"), reg("d/y", "2"), reg(".wh.d", "")}}, `
			./
			d/
			d/y "2"
			f "new"`},
		{"made again by children only: nothing of the old directory", layers{{root, mkd("d").mode(0o700).own(5, 5), reg("d/x", "1")}, {reg(".wh.d", ""), reg("d/y", "2")}}, `
			./
			d/ time=0.0
			d/y "2"`},
		{"opaque", layers{{root, mkd("d").mode(0o700), reg("d/x", "1"), mkd("d/sub"), reg("d/sub/x", "1")}, {mkd("d"), reg("d/.wh..wh..opq", ""), reg("d/y", "2")}}, `
			./
			d/
			d/y "2"`},
		{"opaque without an entry keeps metadata", layers{{root, mkd("d").mode(0o700), reg("d/x", "1")}, {reg("d/.wh..wh..opq", ""), reg("d/y", "2")}}, `
			./
			d/ mode=700
			d/y "2"`},
		{"opaque between", layers{{root, mkd("d"), reg("d/1", "")}, {mkd("d"), reg("d/.wh..wh..opq", ""), reg("d/2", "")}, {mkd("d").mode(0o711), reg("d/3", "")}}, `
			./
			d/ mode=711
			d/2 ""
			d/3 ""`},
		{"opaque root", layers{{mkd("./").mode(0o700), reg("old", "")}, {reg(".wh..wh..opq", ""), reg("new", "")}}, `
			./ mode=700
			new ""`},
		{"opaque hides below an implicit directory", layers{{root, mkd("a"), mkd("a/b"), reg("a/b/x", "")}, {mkd("a"), reg("a/.wh..wh..opq", "")}, {reg("a/b/y", "")}}, `
			./
			a/
			a/b/ time=0.0
			a/b/y ""`},
		{"missing parents take the lower directory's metadata", layers{{root, mkd("a").mode(0o700).own(1, 2).xattr("user.k", "v").at(77, 0)}, {reg("a/b/c", "x")}}, `
			./
			a/ mode=700 own=1:2 time=77.0 user.k="v"
			a/b/ time=0.0
			a/b/c "x"`},
		{"metadata through several layers without an entry", layers{{root, mkd("a").mode(0o700)}, {mkd("a").mode(0o711)}, {reg("a/1", "")}, {reg("a/2", "")}}, `
			./
			a/ mode=711
			a/1 ""
			a/2 ""`},
		{"an upper directory's attributes replace, not add", layers{{root, mkd("a").xattr("user.low", "1")}, {mkd("a").xattr("user.high", "1")}}, `
			./
			a/ user.high="1"`},
		{"types replaced", layers{
			{root, reg("file-dir", "1"), reg("file-sym", "1"), mkd("dir-file"), reg("dir-file/x", ""), mkd("dir-sym"), reg("dir-sym/x", ""), sym("sym-file", "t"), sym("sym-dir", "t")},
			{mkd("file-dir"), reg("file-dir/x", ""), sym("file-sym", "t"), reg("dir-file", "2"), sym("dir-sym", "t"), reg("sym-file", "2"), mkd("sym-dir"), reg("sym-dir/x", "")},
		}, `
			./
			dir-file "2"
			dir-sym -> t
			file-dir/
			file-dir/x ""
			file-sym -> t
			sym-dir/
			sym-dir/x ""
			sym-file "2"`},
		{"a file between directories ends the lower one", layers{{root, mkd("d").mode(0o700), reg("d/1", "")}, {reg("d", "2")}, {reg("d/3", "")}}, `
			./
			d/ time=0.0
			d/3 ""`},
		{"hard links within a lower layer, one replaced", layers{{root, reg("a", "x"), lnk("b", "a"), lnk("c", "a")}, {reg("a", "new")}}, `
			./
			a "new"
			b "x"
			c "x" == b`},
		{"hard link to a lower layer", layers{{root, mkd("d"), reg("d/f", "x").mode(0o755)}, {}, {lnk("j", "d/f").mode(0o700), lnk("i", "j"), lnk("h", "d/f").mode(0o4711)}}, `
			./
			d/
			d/f "x" mode=4711
			h "x" mode=4711 == d/f
			i "x" mode=4711 == d/f
			j "x" mode=4711 == d/f`},
		{"hard link's attributes, by two layers", layers{{root, reg("f", "x").xattr("user.f", "1").xattr("user.g", "1")}, {lnk("g", "f").mode(0o700)}, {lnk("h", "g").mode(0o710).xattr("user.f", "2")}}, `
			./
			f "x" mode=710 user.f="2" user.g="1"
			g "x" mode=710 user.f="2" user.g="1" == f
			h "x" mode=710 user.f="2" user.g="1" == f`},
		{"hard link to a lower file that the layer replaces", layers{{root, reg("f", "old")}, {lnk("h", "f"), reg("f", "new")}}, `
			./
			f "new"
			h "old"`},
		{"hard link to a lower file that the layer removes", layers{{root, reg("f", "old")}, {lnk("h", "f"), reg(".wh.f", "")}}, `
			./
			h "old"`},
		{"hard link to a lower hard link to a lower file", layers{{root, reg("f", "x")}, {lnk("g", "f")}, {lnk("h", "g"), reg(".wh.f", "")}}, `
			./
			g "x"
			h "x" == g`},
		{"hard link to a lower layer through its symlink", layers{{root, mkd("usr/lib"), reg("usr/lib/f", "x"), sym("lib", "/usr/lib")}, {lnk("h", "lib/f")}}, `
			./
			h "x"
			lib -> /usr/lib
			usr/ time=0.0
			usr/lib/
			usr/lib/f "x" == h`},
		{"hard link to a lower symlink", layers{{root, sym("s", "t")}, {lnk("h", "s")}}, `
			./
			h -> t
			s -> t == h`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(memStore)
			tree, err := mergeLayers(t, s, tt.layers...)
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, s, tree, tt.want)
		})
	}
}

// TestMergeBelowSymlink: names below a symlink of a lower layer are where it
// points to, unless the layer has an entry that replaces it.
func TestMergeBelowSymlink(t *testing.T) {
	base := []ent{mkd("./"), mkd("usr"), mkd("usr/lib"), reg("usr/lib/low", "1"), sym("lib", "usr/lib")}
	for _, tt := range []struct {
		name   string
		layers [][]ent
		want   string
	}{
		{"file", [][]ent{base, {reg("lib/x", "2")}}, `
			./
			lib -> usr/lib
			usr/
			usr/lib/
			usr/lib/low "1"
			usr/lib/x "2"`},
		{"deeper, and in the real directory too", [][]ent{base, {reg("lib/a/x", "2"), mkd("usr/lib/a"), reg("usr/lib/a/y", "2"), reg("usr/lib/z", "2")}}, `
			./
			lib -> usr/lib
			usr/
			usr/lib/
			usr/lib/a/
			usr/lib/a/x "2"
			usr/lib/a/y "2"
			usr/lib/low "1"
			usr/lib/z "2"`},
		{"own entry replaces the symlink", [][]ent{base, {mkd("lib"), reg("lib/x", "2")}}, `
			./
			lib/
			lib/x "2"
			usr/
			usr/lib/
			usr/lib/low "1"`},
		{"whiteout in the layer replaces it too", [][]ent{base, {reg(".wh.lib", ""), reg("lib/x", "2")}}, `
			./
			lib/ time=0.0
			lib/x "2"
			usr/
			usr/lib/
			usr/lib/low "1"`},
		{"whiteouts and opaque below it", [][]ent{append(base[:5:5], mkd("usr/o"), reg("usr/o/gone", ""), sym("o", "/usr/o")), {reg("lib/.wh.low", ""), reg("o/.wh..wh..opq", ""), reg("o/x", "2")}}, `
			./
			lib -> usr/lib
			o -> /usr/o
			usr/
			usr/lib/
			usr/o/
			usr/o/x "2"`},
		{"hidden later by a whiteout of the symlink", [][]ent{base, {reg("lib/x", "2")}, {reg(".wh.lib", "")}}, `
			./
			usr/
			usr/lib/
			usr/lib/low "1"
			usr/lib/x "2"`},
		{"symlink to what no layer has", [][]ent{{mkd("./"), sym("s", "not/there")}, {reg("s/x", "2")}}, `
			./
			not/ time=0.0
			not/there/ time=0.0
			not/there/x "2"
			s -> not/there`},
		{"chain of symlinks, out of the root and back", [][]ent{append(base[:5:5], sym("a", "../../b"), sym("b", "lib/.")), {reg("a/x", "2")}}, `
			./
			a -> ../../b
			b -> lib/.
			lib -> usr/lib
			usr/
			usr/lib/
			usr/lib/low "1"
			usr/lib/x "2"`},
		{"symlink met only after moving", [][]ent{append(base[:5:5], sym("usr/lib/deep", "/data")), {reg("lib/deep/x", "2")}}, `
			./
			data/ time=0.0
			data/x "2"
			lib -> usr/lib
			usr/
			usr/lib/
			usr/lib/deep -> /data
			usr/lib/low "1"`},
		{"symlink to the root", [][]ent{{mkd("./"), mkd("d"), sym("d/up", "/")}, {reg("d/up/x", "2")}}, `
			./
			d/
			d/up -> /
			x "2"`},
		{"symlink in a circle, or to a file: replaced", [][]ent{{mkd("./"), sym("a", "b"), sym("b", "a"), reg("f", ""), sym("c", "f")}, {reg("a/x", "2"), reg("c/x", "2")}}, `
			./
			a/ time=0.0
			a/x "2"
			b -> a
			c/ time=0.0
			c/x "2"
			f ""`},
		{"the layer puts a file where the symlink points to", [][]ent{base, {reg("lib/x", "2"), reg("usr/lib", "file")}}, `
			./
			lib -> usr/lib
			usr/
			usr/lib "file"`},
		{"two layers", [][]ent{base, {reg("lib/x", "2")}, {reg("lib/x", "3"), reg("lib/y", "3")}}, `
			./
			lib -> usr/lib
			usr/
			usr/lib/
			usr/lib/low "1"
			usr/lib/x "3"
			usr/lib/y "3"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(memStore)
			var trees []*mkdaxfs.Tree
			var before []string
			for _, l := range tt.layers {
				tree := layerTree(t, s, l...)
				trees = append(trees, tree)
				before = append(before, show(t, s, tree))
			}
			tree, err := Merge(trees)
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, s, tree, tt.want)
			for i, tr := range trees {
				if got := show(t, s, tr); got != before[i] {
					t.Errorf("Merge changed layer %d:\n%s\nwas\n%s", i, got, before[i])
				}
			}
		})
	}
}

func TestMergeErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers [][]ent
		want   string
	}{
		{"hard link to nothing", [][]ent{{reg("f", "")}, {lnk("d/h", "no/such")}}, `hard link "d/h": target "no/such" is in no layer`},
		{"hard link to nothing, one layer", [][]ent{{lnk("h", "no")}}, `hard link "h": target "no" is in no layer`},
		{"hard link to a lower directory", [][]ent{{mkd("d")}, {lnk("h", "d")}}, `hard link "h": target "d" is a directory`},
		{"hard link to what a lower layer removed", [][]ent{{reg("f", "")}, {reg(".wh.f", "")}, {lnk("h", "f")}}, `hard link "h": target "f" is in no layer`},
		{"hard link to what an opaque directory hides", [][]ent{{reg("d/f", "")}, {mkd("d"), reg("d/.wh..wh..opq", "")}, {lnk("h", "d/f")}}, `hard link "h": target "d/f" is in no layer`},
		{"hard link to a higher layer", [][]ent{{lnk("h", "f")}, {reg("f", "")}}, `hard link "h": target "f" is in no layer`},
		{"hard link in a circle of symlinks", [][]ent{{sym("a", "b"), sym("b", "a")}, {lnk("h", "a/f")}}, `hard link "h": "a/f" crosses more than 40 symlinks`},
		{"hard link into a file", [][]ent{{reg("f", "")}, {lnk("h", "f/x")}}, `hard link "h": target "f/x" is in no layer`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := mergeLayers(t, new(memStore), tt.layers...)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.Is(err, ErrBadLayer) {
				t.Errorf("error %v, want %q and ErrBadLayer", err, tt.want)
			}
		})
	}
}

// TestMergeRepeatable: flattening again gives the same tree, and layers of a
// merge can be merged again.
func TestMergeRepeatable(t *testing.T) {
	layers := chain(3000)
	var first string
	for i := range 3 {
		tree, err := Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		super, _, err := l.Emit(mkdaxfs.Place{Meta: 4096, End: region})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", super); first == "" {
			first = got
		} else if got != first {
			t.Errorf("merge %d differs", i)
		}
	}
}
