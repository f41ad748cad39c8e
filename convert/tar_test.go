package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// TestFromTar shows what one layer becomes, before it is merged.
func TestFromTar(t *testing.T) {
	const implicitRoot = `./ time=0.0 trusted.daxfs.implicit="y"` + "\n"
	long := strings.Repeat("n", disk.MaxNameLen)
	for _, tt := range []struct {
		name string
		ents []ent
		want string
	}{
		{"nothing", nil, implicitRoot},
		{"root entry", []ent{mkd("./").mode(0o700).own(1, 2)}, "./ mode=700 own=1:2"},
		{"names are normal", []ent{mkd("./a//b/"), reg("./a/./b/f", "x")}, implicitRoot + `
			a/ time=0.0 trusted.daxfs.implicit="y"
			a/b/
			a/b/f "x"`},
		{"all types", []ent{
			reg("file", "data").mode(0o4755), mkd("dir").mode(0o1777), sym("sym", "no where").mode(0o600), lnk("hard", "file"),
			entry(tar.TypeFifo, "fifo"), entry(tar.TypeChar, "char").dev(1, 3), entry(tar.TypeBlock, "block").dev(4095, 1<<20-1),
			entry(tar.TypeCont, "cont"),
		}, implicitRoot + `
			block block 4095:1048575
			char char 1:3
			cont ""
			dir/ mode=1777
			fifo fifo
			file "data"
			hard "data" == file
			sym -> no where`},
		{"metadata", []ent{reg("f", "").own(4294967294, 65536).at(-62135596800, 999999999).xattr("user.x", "1").xattr("security.capability", "\x01\x00")}, implicitRoot + `
			f "" own=4294967294:65536 time=-62135596800.999999999 security.capability="\x01\x00" user.x="1"`},
		{"negative time with nanoseconds", []ent{reg("f", "").at(-2, 500000000)}, implicitRoot + `
			f "" time=-2.500000000`},
		{"names of 255 bytes, and none of UTF-8", []ent{reg(long, ""), reg("\xff\xfe", "")}, implicitRoot +
			long + " \"\"\n\xff\xfe \"\""},
		{"missing parents", []ent{reg("a/b/c", "x")}, implicitRoot + `
			a/ time=0.0 trusted.daxfs.implicit="y"
			a/b/ time=0.0 trusted.daxfs.implicit="y"
			a/b/c "x"`},
		{"parent's entry comes late", []ent{reg("a/b", "x"), mkd("a").mode(0o711)}, implicitRoot + `
			a/ mode=711
			a/b "x"`},
		{"duplicates: the last wins", []ent{reg("f", "1"), reg("f", "2"), mkd("d").mode(0o700), reg("d/x", ""), mkd("d").mode(0o711)}, implicitRoot + `
			d/ mode=711
			d/x ""
			f "2"`},
		{"type changes in a layer", []ent{
			reg("file-dir", "x"), mkd("file-dir"), mkd("dir-file"), reg("dir-file/x", ""), reg("dir-file", "x"),
			mkd("dir-sym"), reg("dir-sym/x", ""), sym("dir-sym", "t"), sym("sym-dir", "t"), mkd("sym-dir"), sym("sym-file", "t"), reg("sym-file", "x"),
		}, implicitRoot + `
			dir-file "x"
			dir-sym -> t
			file-dir/
			sym-dir/
			sym-file "x"`},
		{"whiteout", []ent{reg(".wh.gone", ""), reg("d/.wh.gone", "")}, implicitRoot + `
			d/ time=0.0 trusted.daxfs.implicit="y"
			d/gone whiteout 0:0
			gone whiteout 0:0`},
		{"whiteout as a device", []ent{entry(tar.TypeChar, "gone").mode(0)}, implicitRoot + `
			gone whiteout 0:0`},
		{"opaque", []ent{mkd("d"), reg("d/.wh..wh..opq", ""), reg("d/x", "")}, implicitRoot + `
			d/ trusted.overlay.opaque="y"
			d/x ""`},
		{"opaque without an entry", []ent{reg("d/.wh..wh..opq", "")}, implicitRoot + `
			d/ time=0.0 trusted.daxfs.implicit="y" trusted.overlay.opaque="y"`},
		{"opaque root", []ent{reg(".wh..wh..opq", ""), reg("f", "")}, `
			./ time=0.0 trusted.daxfs.implicit="y" trusted.overlay.opaque="y"
			f ""`},
		{"file whited out before it is made", []ent{reg(".wh.f", ""), reg("f", "new")}, implicitRoot + `f "new"`},
		{"file whited out after it is made", []ent{reg("f", "new"), reg(".wh.f", "")}, implicitRoot + `f "new"`},
		{"directory whited out before it is made", []ent{reg(".wh.d", ""), mkd("d"), reg("d/x", "")}, implicitRoot + `
			d/ trusted.overlay.opaque="y"
			d/x ""`},
		{"directory whited out after it is made", []ent{mkd("d"), reg("d/x", ""), reg(".wh.d", "")}, implicitRoot + `
			d/ trusted.overlay.opaque="y"
			d/x ""`},
		{"directory whited out and made by its children", []ent{reg(".wh.d", ""), reg("d/x", "")}, implicitRoot + `
			d/ time=0.0 trusted.overlay.opaque="y"
			d/x ""`},
		{"hard links", []ent{mkd("a"), reg("a/1", "x"), lnk("b/2", "a/1"), lnk("3", "/b/2"), lnk("4", "./3")}, implicitRoot + `
			3 "x"
			4 "x" == 3
			a/
			a/1 "x" == 3
			b/ time=0.0 trusted.daxfs.implicit="y"
			b/2 "x" == 3`},
		{"hard link keeps the file that is replaced later", []ent{reg("a", "old"), lnk("b", "a"), reg("a", "new")}, implicitRoot + `
			a "new"
			b "old"`},
		{"hard link to itself", []ent{reg("a", "x"), lnk("a", "a")}, implicitRoot + `a "x"`},
		{"hard link replaces a directory", []ent{reg("a", "x"), reg("d/x", ""), lnk("d", "a")}, implicitRoot + `
			a "x"
			d "x" == a`},
		{"hard link to a symlink", []ent{sym("s", "t"), lnk("h", "s")}, implicitRoot + `
			h -> t
			s -> t == h`},
		{"hard link through a symlink", []ent{mkd("usr/lib"), reg("usr/lib/f", "x"), sym("lib", "usr/lib"), lnk("h", "lib/f")}, implicitRoot + `
			h "x"
			lib -> usr/lib
			usr/ time=0.0 trusted.daxfs.implicit="y"
			usr/lib/
			usr/lib/f "x" == h`},
		{"symlinked parent", []ent{mkd("usr"), sym("lib", "usr/lib"), reg("lib/f", "x"), sym("abs", "/usr"), reg("abs/g", "y"), sym("up", "../../usr"), reg("up/h", "z")}, implicitRoot + `
			abs -> /usr
			lib -> usr/lib
			up -> ../../usr
			usr/
			usr/g "y"
			usr/h "z"
			usr/lib/ time=0.0 trusted.daxfs.implicit="y"
			usr/lib/f "x"`},
		{"whiteout below a symlinked parent", []ent{sym("lib", "usr/lib"), reg("lib/.wh.f", "")}, implicitRoot + `
			lib -> usr/lib
			usr/ time=0.0 trusted.daxfs.implicit="y"
			usr/lib/ time=0.0 trusted.daxfs.implicit="y"
			usr/lib/f whiteout 0:0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(memStore)
			wantTree(t, s, layerTree(t, s, tt.ents...), tt.want)
		})
	}
}

// TestFromTarLinkBelow: a hard link to what the layer does not have keeps the
// path, without the symlinks that the layer has, and what the last such link
// says about the file.
func TestFromTarLinkBelow(t *testing.T) {
	s := new(memStore)
	tree := layerTree(t, s, lnk("j", "lower/f").mode(0o711), sym("s", "x/y"), lnk("i", "/s/f"), lnk("h", "lower/f").mode(0o600))
	wantTree(t, s, tree, `
		./ time=0.0 trusted.daxfs.implicit="y"
		h "" mode=600 trusted.daxfs.link="lower/f"
		i "" trusted.daxfs.link="x/y/f"
		j "" mode=600 trusted.daxfs.link="lower/f" == h
		s -> x/y`)
}

// TestPlainTar: an archive that is no layer has no marks and no whiteouts.
func TestPlainTar(t *testing.T) {
	s := new(memStore)
	tree, _, err := FromTar(context.Background(), bytes.NewReader(archive(t, reg("d/.wh.x", "1"), reg("d/.wh..wh..opq", "2"))), s, TarOptions{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	wantTree(t, s, tree, `
		./ time=0.0
		d/ time=0.0
		d/.wh..wh..opq "2"
		d/.wh.x "1"`)
}

func TestFromTarWarnings(t *testing.T) {
	s := new(memStore)
	tree, warnings, err := FromTar(context.Background(), bytes.NewReader(archive(t,
		reg("f", "").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.overlay.x", "y").xattr("trusted.daxfs.link", "etc/shadow").
			xattr("user.ok", "1").xattr("weird.x", "1").xattr("trusted.ok", "2").xattr("user.", ""),
		sym("s", "t").xattr("user.on-symlink", "1").xattr("security.selinux", "label"),
	)), s, TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantTree(t, s, tree, `
		./ time=0.0 trusted.daxfs.implicit="y"
		f "" trusted.ok="2" user.ok="1"
		s -> t security.selinux="label"`)
	var got []string
	for _, w := range warnings {
		got = append(got, w.Path+": "+w.Reason)
	}
	want := []string{
		`f: xattr "trusted.daxfs.link" is reserved`,
		`f: xattr "trusted.overlay.opaque" is reserved`,
		`f: xattr "trusted.overlay.overlay.x" is reserved`,
		`f: xattr "user." is in no namespace that the format knows`,
		`f: xattr "weird.x" is in no namespace that the format knows`,
		`s: xattr "user.on-symlink" is possible on files and directories only`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMaxTime(t *testing.T) {
	s := new(memStore)
	tree, _, err := FromTar(context.Background(), bytes.NewReader(archive(t,
		reg("before", "").at(999, 999999999), reg("equal", "").at(1000, 0), reg("after", "").at(1000, 1), mkd("later").at(5000, 0))), s, TarOptions{MaxTime: 1000})
	if err != nil {
		t.Fatal(err)
	}
	wantTree(t, s, tree, `
		./ time=0.0 trusted.daxfs.implicit="y"
		after "" time=1000.0
		before "" time=999.999999999
		equal "" time=1000.0
		later/ time=1000.0`)
}
