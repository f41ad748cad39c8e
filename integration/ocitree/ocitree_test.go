package ocitree

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

// layer writes a tar of one-line descriptions: "d name", "f name content",
// "l name target" (hard link), "s name target" (symlink).
func layer(t *testing.T, lines ...string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i, line := range lines {
		f := append(strings.Fields(line), "", "")
		h := &tar.Header{Name: f[1], Mode: 0o700, ModTime: time.Unix(int64(1000+i), 0), Format: tar.FormatPAX}
		content := ""
		switch f[0] {
		case "d":
			h.Typeflag = tar.TypeDir
		case "f":
			h.Typeflag, content = tar.TypeReg, f[2]
			h.Size = int64(len(content))
		case "l":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		case "s":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestFlatten(t *testing.T) {
	cases := []struct {
		name   string
		layers [][]string
		want   string // all paths but the root
	}{
		{"whiteout", [][]string{{"d a", "f a/x", "f a/y"}, {"f a/.wh.x"}}, "a a/y"},
		{"whiteout of a directory", [][]string{{"d a", "f a/x"}, {"f .wh.a"}}, ""},
		{"whiteout of nothing", [][]string{{"d a"}, {"f .wh.b"}}, "a"},
		{"whiteout does not touch its own layer", [][]string{{"f a 1"}, {"f a 2", "f .wh.a"}}, "a"},
		{"remade directory is empty", [][]string{{"d a", "f a/x"}, {"f .wh.a", "d a", "f a/y"}}, "a a/y"},
		{"opaque after and before", [][]string{{"f a/x", "f b/x"}, {"d a", "f a/y", "f a/.wh..wh..opq", "f b/.wh..wh..opq", "f b/y"}}, "a a/y b b/y"},
		{"opaque hides below subdirectories", [][]string{{"f a/s/x"}, {"f a/.wh..wh..opq", "f a/s/y"}}, "a a/s a/s/y"},
		{"opaque root", [][]string{{"f a"}, {"f .wh..wh..opq", "f b"}}, "b"},
		{"removed long ago stays removed", [][]string{{"f a/x"}, {"f .wh.a"}, {"d a"}}, "a"},
		{"file over directory over file", [][]string{{"f a/x"}, {"f a"}, {"d a"}}, "a"},
		{"through a lower symlink", [][]string{{"d r/s", "s a r"}, {"f a/x", "f a/s/y"}}, "a r r/s r/s/y r/x"},
		{"through an absolute lower symlink", [][]string{{"d r", "s b/a /r", "f r/old"}, {"f b/a/x", "f b/y"}}, "b b/a b/y r r/old r/x"},
		{"directory over symlink", [][]string{{"d r", "s a r"}, {"d a", "f a/x"}}, "a a/x r"},
		{"directory in place of a removed symlink", [][]string{{"d r", "s a r"}, {"f .wh.a", "f a/x"}}, "a a/x r"},
		{"through a symlink of the layer", [][]string{{"d r", "s a /r", "f a/x"}}, "a r r/x"},
		{"symlink cannot leave the root", [][]string{{"s a ../../r", "f a/x"}}, "a r r/x"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var rs []io.Reader
			for _, l := range c.layers {
				rs = append(rs, layer(t, l...))
			}
			tree, _, err := Flatten(rs, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(tree.Paths()[1:], " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestFlattenMetadata(t *testing.T) {
	tree, notes, err := Flatten([]io.Reader{
		layer(t, "d a", "f a/1 text", "l a/2 a/1", "l b/3 a/2"),
		layer(t, "f a/new", "f a/.wh.1", "l late b/3"),
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// a has no entry in the upper layer: the lower one's attributes stay.
	if a := tree["a"]; a.Mode&0o7777 != 0o700 || a.MtimeSec != 1000 || !notes.Implied["a"] {
		t.Errorf("a: %+v", a)
	}
	if b := tree["b"]; b.Mode&0o7777 != 0o755 || b.MtimeSec != 0 || !notes.Implied["b"] {
		t.Errorf("b: %+v", b)
	}
	l := tree["late"]
	if strings.Join(l.Links, " ") != "a/2 b/3 late" || l.Nlink != 3 || !notes.Unlinked["late"] {
		t.Errorf("late: %+v", l)
	}
	if tree["a/new"].Nlink != 1 || notes.Unlinked["a/new"] {
		t.Errorf("a/new: %+v", tree["a/new"])
	}
}

func TestFlattenRefuses(t *testing.T) {
	for _, l := range []string{"l a nothing", "f f/x"} {
		_, _, err := Flatten([]io.Reader{layer(t, "f f", l)}, Options{})
		if err == nil {
			t.Errorf("%q: no error", l)
		}
	}
}
