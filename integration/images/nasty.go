package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// makeNasty writes, entry by entry, whatever a layer may hold and few do. It
// stays inside what containerd's overlayfs snapshotter unpacks at all, since it
// is compared with that: no hard link to a file of a lower layer, no whiteout
// of a name that the same layer has already made.
//
// The tag points at an image index whose first manifest is of another
// architecture and not to be unpacked.
func makeNasty(_ context.Context, m *maker) error {
	prog, err := os.ReadFile(m.cache.TestProg)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		c    Compression
		fill func(*layerTar)
	}{
		{Gzip, func(t *layerTar) { nastyBase(t, string(prog)) }},
		{Zstd, nastyKinds},
		{None, func(*layerTar) {}}, // a layer without entries
		{Gzip, nastyNames},
		{Zstd, nastyRemovals},
		{Gzip, nastyTypes},
		{None, nastyImplied},
		{Gzip, nastyRemade},
		{Zstd, nastyCrowds},
		{Gzip, nastyOddTar},
		{Gzip, nastyOnlyWhiteouts},
	} {
		if err := m.tar(l.c, l.fill); err != nil {
			return err
		}
	}
	other, err := m.addLayer(Gzip, func(w io.Writer) error {
		t := newLayerTar(w)
		t.file("wrong-architecture", "")
		return t.close()
	})
	if err != nil {
		return err
	}
	return m.finish(m.layers, []string{"/bin/true"}, []Layer{other})
}

// makeRootOpaque hides the whole of its first layer with a marker at the root,
// which overlayfs does not honour.
func makeRootOpaque(_ context.Context, m *maker) error {
	prog, err := os.ReadFile(m.cache.TestProg)
	if err != nil {
		return err
	}
	for _, fill := range []func(*layerTar){
		func(t *layerTar) {
			t.dir("bin")
			t.file("bin/true", string(prog), mode(0o755))
			t.file("hidden", "by the marker at the root\n")
			t.dir("both")
			t.file("both/hidden", "too\n")
		},
		func(t *layerTar) {
			t.file(".wh..wh..opq", "")
			t.dir("bin")
			t.file("bin/true", string(prog), mode(0o755))
			t.dir("both")
			t.file("both/seen", "of the upper layer\n")
		},
	} {
		if err := m.tar(Gzip, fill); err != nil {
			return err
		}
	}
	return m.finish(m.layers, []string{"/bin/true"}, nil)
}

// nastyBase: the program, and what the later layers change.
func nastyBase(t *layerTar, prog string) {
	t.globalHeader()
	t.dir(".", mode(0o711), owner(7, 8))
	t.dir("bin")
	t.file("bin/testprog", prog, mode(0o755))
	for _, name := range []string{"true", "sleep", "cat", "sum", "write", "walk"} {
		t.link("bin/"+name, "bin/testprog", mode(0o755))
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "etc"} {
		t.dir(d)
	}
	t.file("etc/passwd", "root:x:0:0::/:/bin/true\n")

	// For nastyRemovals.
	for _, d := range []string{"gone", "opaque", "opaque/sub", "opaque2", "opaquewh", "partly", "partly/a", "partly/a/b"} {
		t.dir(d)
		t.file(d+"/old", "lower "+d+"\n")
	}
	t.file("gone-file", "x")
	t.symlink("gone-symlink", "etc")
	t.node(tar.TypeChar, "gone-device", 1, 3)
	// Names that an upper layer removes some of: the link counts.
	t.file("linked/1", "three names\n")
	t.link("linked/2", "linked/1")
	t.link("linked/3", "linked/1")

	// For nastyTypes: every type becomes every other.
	for _, from := range types {
		for _, to := range types {
			makeType(t, "types/"+from+"-to-"+to, from)
		}
	}

	// For nastyImplied.
	t.dir("implied", mode(0o2750), owner(1001, 1002), xattr("user.lower", "kept"))
	t.dir("implied/deep", mode(0o1777), owner(1003, 1004))
	t.dir("implied/deep/er", mode(0o700), owner(1005, 1006))
	t.file("implied/deep/er/old", "")
	t.dir("explicit", mode(0o700), owner(5, 5), xattr("user.lower", "not kept"))
	t.file("explicit/old", "")
	t.dir("real")
	t.file("real/old", "")
	t.symlink("to-real", "real")

	// For nastyRemade.
	for _, d := range []string{"remade-dir", "remade-dir/sub", "remade-later", "remade-file"} {
		t.dir(d)
		t.file(d+"/old", "lower\n")
	}
	t.file("remade", "lower\n")
}

// nastyKinds: every type of file and every kind of metadata.
func nastyKinds(t *layerTar) {
	t.dir("kinds")
	t.node(tar.TypeFifo, "kinds/fifo", 0, 0, mode(0o644))
	t.node(tar.TypeChar, "kinds/null", 1, 3, mode(0o666))
	t.node(tar.TypeChar, "kinds/char-0-1", 0, 1) // almost a whiteout
	t.node(tar.TypeBlock, "kinds/block-0-0", 0, 0)
	t.node(tar.TypeChar, "kinds/char-max", 4095, 1048575)
	t.node(tar.TypeBlock, "kinds/block-259-1048575", 259, 1048575)
	t.node(tar.TypeBlock, "kinds/loop", 7, 256)

	t.file("kinds/setuid", "", mode(0o4755))
	t.file("kinds/setgid", "", mode(0o2755))
	t.file("kinds/all-bits", "", mode(0o7777))
	t.file("kinds/no-bits", "unreadable\n", mode(0))
	t.dir("kinds/sticky", mode(0o1777))
	t.dir("kinds/setgid-dir", mode(0o2775), owner(0, 50))
	t.file("kinds/setgid-dir/of-root", "")
	t.dir("kinds/setgid-dir/sub")

	// VFS_CAP_REVISION_2, effective, cap_net_raw permitted; and revision 3 with
	// a root id.
	const v2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	const v3 = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
	t.file("kinds/capable", "x", mode(0o755), xattr("security.capability", v2))
	t.file("kinds/capable-ns", "x", mode(0o755), xattr("security.capability", v3))
	t.file("kinds/capable-setuid", "x", mode(0o4755), owner(3, 3), xattr("security.capability", v2))
	t.file("kinds/capable-linked", "x", mode(0o755), xattr("security.capability", v2))
	t.link("kinds/capable-link", "kinds/capable-linked", mode(0o755))

	t.file("kinds/xattrs", "x", xattr("user.text", "value"), xattr("user.binary", "\x00\xff\n=\x00"),
		xattr("user.long", strings.Repeat("v", 1500)), xattr("user."+strings.Repeat("n", 250), "longest name"))
	t.file("kinds/same-xattrs-1", "1", xattr("user.shared", "value"))
	t.file("kinds/same-xattrs-2", "2", xattr("user.shared", "value"))
	t.dir("kinds/xattr-dir", xattr("user.dir", "1"))
	// Not allowed on a symlink: containerd's applier leaves it out.
	t.symlink("kinds/xattr-symlink", "nowhere", xattr("user.refused", "1"))
	t.file("kinds/trusted", "", xattr("trusted.note", "left out by containerd's applier"))
	// user_obj rw, user 1000 rwx, group_obj r, mask rwx, other none.
	access := acl([3]uint32{1, 6, ^uint32(0)}, [3]uint32{2, 7, 1000}, [3]uint32{4, 4, ^uint32(0)}, [3]uint32{16, 7, ^uint32(0)}, [3]uint32{32, 0, ^uint32(0)})
	t.file("kinds/acl", "", mode(0o670), xattr("system.posix_acl_access", access))
	t.dir("kinds/acl-default", mode(0o750), xattr("system.posix_acl_default", access))

	for i, id := range []int{1, 65534, 65535, 65536, 1<<31 - 1, 1 << 31, 1<<32 - 2} {
		t.file(fmt.Sprintf("kinds/owner%d", i), "", owner(id, 0))
		t.dir(fmt.Sprintf("kinds/group%d", i), owner(0, id))
		t.symlink(fmt.Sprintf("kinds/both%d", i), "x", owner(id, id))
	}

	for _, x := range []struct {
		name string
		at   time.Time
	}{
		{"epoch", time.Unix(0, 0)},
		{"epoch+1ns", time.Unix(0, 1)},
		{"ns", time.Unix(1234567890, 123456789)},
		{"almost", time.Unix(1234567890, 999999999)},
		{"before", time.Unix(-2, 500000000)},
		{"1902", time.Date(1902, 1, 1, 0, 0, 0, 7, time.UTC)},
		{"2038", time.Unix(1<<31-1, 999999999)},
		{"2038+1", time.Unix(1<<31, 0)},
		{"2106", time.Unix(1<<32, 1)},
		{"2200", time.Date(2200, 1, 1, 0, 0, 0, 1, time.UTC)},
		{"2261", time.Date(2261, 1, 1, 0, 0, 0, 1, time.UTC)},
		{"2400", time.Date(2400, 1, 1, 0, 0, 0, 1, time.UTC)},
		{"year-32000", time.Date(32000, 1, 1, 0, 0, 0, 1, time.UTC)},
	} {
		t.file("kinds/time-"+x.name, "", mtime(x.at))
		t.dir("kinds/time-dir-"+x.name, mtime(x.at))
		t.symlink("kinds/time-symlink-"+x.name, "x", mtime(x.at))
	}

	for _, n := range []int{1, 4095, 4096, 4097, 8191, 8192, 65536, 1<<20 + 1} {
		t.file(fmt.Sprintf("kinds/size-%d", n), noise(uint64(n), n))
	}
	t.file("kinds/zeros", strings.Repeat("\x00", 3<<20)+"end")
	t.file("kinds/same-content-1", noise(5, 9000))
	t.file("kinds/same-content-2", noise(5, 9000), mode(0o755), owner(9, 9))

	// Hard links: inside and across directories, to a symlink, to a FIFO and a
	// device; the last header's metadata is the inode's.
	t.dir("kinds/links")
	t.file("kinds/links/a", "linked\n", mode(0o600))
	t.link("kinds/links/b", "kinds/links/a", mode(0o640), owner(11, 12))
	t.dir("kinds/links/sub")
	t.link("kinds/links/sub/c", "./kinds/links/b", mode(0o640), owner(11, 12))
	t.link("kinds/up", "/kinds/links/sub/c", mode(0o640), owner(11, 12))
	t.symlink("kinds/links/symlink", "a")
	t.link("kinds/links/symlink-link", "kinds/links/symlink", mode(0o777))
	t.link("kinds/links/fifo-link", "kinds/fifo", mode(0o644))
	t.link("kinds/links/null-link", "kinds/null", mode(0o666))
	t.file("kinds/links/empty", "")
	t.link("kinds/links/empty-link", "kinds/links/empty")
}

// nastyNames: names that are hard to carry.
func nastyNames(t *layerTar) {
	t.dir("names")
	t.file("names/"+strings.Repeat("n", 255), "255 bytes\n")
	t.file("names/"+strings.Repeat("\xff", 255), "255 bytes, not UTF-8\n")
	t.dir("names/" + strings.Repeat("d", 255))
	for _, n := range []string{"\xc3\x28", "\x80", "a\nb", "tab\there", "back\\slash", "\x1b[31m", " ", "...", "wh.", ".wh",
		"ünïcödé", "u\u0308", "日本語", "*", "-rf", "quote'\"", "\x01\x7f"} {
		t.file("names/"+n, n)
	}
	for _, n := range []string{"A", "a"} { // apart only in case
		t.dir("names/case/" + n)
	}
	// Two kilobytes of path.
	deep := "names"
	for i := range 10 {
		deep += "/" + strings.Repeat(string(rune('a'+i)), 200)
		t.dir(deep)
	}
	t.file(deep+"/leaf", "deep\n")
	t.link("names/leaf-link", deep+"/leaf")
	t.symlink("names/long-target", strings.Repeat("t/", 2000))
	t.symlink("names/target-bytes", "\xff\xfe\n")
	t.symlink("names/loop", "loop")
	t.symlink("names/up", "../../../..")
	t.symlink("names/4095", strings.Repeat("x", 4095))
	for _, n := range []int{59, 60, 61} { // where file systems start a block
		t.symlink(fmt.Sprintf("names/target-%d", n), strings.Repeat("s", n))
	}
	// For nastyOnlyWhiteouts.
	t.file("names/doomed/"+strings.Repeat("w", 255), "")
}

// nastyRemovals: whiteouts and opaque directories.
func nastyRemovals(t *layerTar) {
	t.whiteout("gone")
	t.whiteout("gone-file")
	t.whiteout("gone-symlink")
	t.whiteout("gone-device")
	t.whiteout("linked/2")
	t.whiteout("never-was")
	t.whiteout("etc/never-was")
	t.whiteout("never/was/parent/either")

	// The marker after the directory's new content, and before it.
	t.dir("opaque")
	t.file("opaque/new", "")
	t.opaque("opaque")
	t.dir("opaque2", mode(0o700))
	t.opaque("opaque2")
	t.file("opaque2/new", "")
	t.file("opaque2/old", "of the upper layer\n")
	// The marker in a directory without entry of its own, and with a whiteout.
	t.opaque("opaquewh")
	t.whiteout("opaquewh/old")
	// An opaque directory that no lower layer has.
	t.dir("opaque-new")
	t.opaque("opaque-new")
	t.file("opaque-new/file", "")

	t.whiteout("partly/a/b")
	t.whiteout("partly/old")
	t.file("partly/a/new", "")
}

// types of entry that nastyTypes turns into each other.
var types = []string{"file", "dir", "symlink", "fifo", "hardlink", "nothing"}

// nastyTypes: every type of entry in place of every other.
func nastyTypes(t *layerTar) {
	for _, from := range types {
		for _, to := range types {
			makeType(t, "types/"+from+"-to-"+to, to)
		}
	}
	// Upper layers take away one name of a lower hard link, and one is replaced.
	t.file("linked/3", "no longer linked\n")
}

func makeType(t *layerTar, name, typ string) {
	switch typ {
	case "file":
		t.file(name, "content of "+name+"\n")
	case "dir":
		t.dir(name)
		t.file(name+"/in", name)
		t.dir(name + "/sub")
		t.file(name+"/sub/in", name)
	case "symlink":
		t.symlink(name, "../etc")
	case "fifo":
		t.node(tar.TypeFifo, name, 0, 0)
	case "hardlink":
		// Both names are of this layer, so that overlayfs can unpack it.
		t.file(name+".source", "linked "+name+"\n")
		t.link(name, name+".source")
	case "nothing":
	}
}

// nastyImplied: directories that this layer needs and has no entry for.
func nastyImplied(t *layerTar) {
	t.file("implied/deep/er/new", "its parents are of the lower layer\n")
	t.file("implied-new/a/b/c", "its parents are nowhere\n")
	t.file("to-real/file", "through a symlink of a lower layer\n")
	t.file("types/file-to-nothing/in", "a directory takes the place of the lower file\n")
	t.dir("explicit", mode(0o755))
	t.file("explicit/new", "its xattrs are this layer's only: none\n")
	t.file("afterwards/file", "the entry of the parent comes later\n")
	t.dir("afterwards", mode(0o711), owner(3, 4))
}

// nastyRemade: names that are whited out and made again, in one layer and in two.
func nastyRemade(t *layerTar) {
	t.whiteout("remade")
	t.file("remade", "upper\n")
	// A directory made again must be empty but for what this layer has;
	// overlayfs shows the lower content.
	t.whiteout("remade-dir")
	t.dir("remade-dir")
	t.file("remade-dir/new", "")
	t.whiteout("remade-file")
	t.file("remade-file", "was a directory\n")
	t.whiteout("remade-later")
	// gone was removed three layers below: nothing of it may come back.
	t.dir("gone")
	t.file("gone/new", "")
	t.file("gone-file/in", "a directory without entry in place of a whiteout\n")
	t.dir("opaque/sub")
	t.file("opaque/sub/new", "")
}

// nastyCrowds: many names in one directory. 272 is where a reader that counts
// v8 entries in the wrong stride loses one.
func nastyCrowds(t *layerTar) {
	t.dir("crowd")
	for _, n := range []int{135, 136, 271, 272, 273} {
		d := fmt.Sprintf("crowd/%d", n)
		t.dir(d)
		for i := range n {
			t.file(fmt.Sprintf("%s/%03d", d, i), "")
		}
	}
	t.dir("crowd/5000")
	for i := range 5000 {
		t.file(fmt.Sprintf("crowd/5000/a-longer-name-%04d", i), fmt.Sprint(i%100))
	}
	t.dir("remade-later", mode(0o750))
	t.file("remade-later/new", "")
}

// nastyOddTar: archives that are legal, or at least accepted.
func nastyOddTar(t *layerTar) {
	t.dir("./odd")
	t.file("odd//double", "")
	t.file("./odd/./dot", "")
	t.file("odd/x/../dotdot", "")
	t.file("/odd/absolute", "")
	t.file("odd/twice", "first\n", mode(0o600))
	t.file("odd/twice", "second\n", mode(0o644))
	t.dir("odd/was-dir")
	t.file("odd/was-dir/in", "")
	t.file("odd/was-dir", "a file after all\n")
	t.file("odd/was-file", "")
	t.dir("odd/was-file")
	t.file("odd/was-file/in", "")
	// The link keeps the inode that its target's name loses.
	t.file("odd/kept", "kept\n")
	t.link("odd/kept-link", "odd/kept")
	t.file("odd/kept", "other\n")
	// An entry below a symlink of the same layer goes where it points, inside the root.
	t.dir("odd/target")
	t.symlink("odd/sym", "target")
	t.file("odd/sym/through", "")
	t.symlink("odd/abs", "/odd/target")
	t.file("odd/abs/through-abs", "")
	t.symlink("odd/out", "../../../../odd/target")
	t.file("odd/out/through-out", "")
	t.link("odd/link-through", "odd/sym/through")
	t.dir("odd/sym/subdir")
	t.sparse("odd/sparse", 10<<20, map[int64]string{0: "head", 1 << 20: noise(1, 5000), 10<<20 - 4: "tail"},
		[]int64{0, 1 << 20, 10<<20 - 4})
}

// nastyOnlyWhiteouts: a top layer that only takes away.
func nastyOnlyWhiteouts(t *layerTar) {
	t.whiteout("names/doomed/" + strings.Repeat("w", 255)) // the marker's own name has 259 bytes
	t.whiteout("kinds/links/b")
	t.whiteout("crowd/271/000")
}
