package disk

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// TestLayoutMatchesC compiles the C structs of kmod/daxfs_format.h, whose
// sizes and offsets are asserted there, and compares the bytes of one of each
// record with what the encoders write.
func TestLayoutMatchesC(t *testing.T) {
	gcc := testutil.Tool(t, "gcc")
	bin := filepath.Join(t.TempDir(), "layout")
	if out, err := exec.Command(gcc, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wpadded", "-I", "../../kmod", "-o", bin, "testdata/layout.c").CombinedOutput(); err != nil {
		t.Fatalf("compile testdata/layout.c: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	c := make(map[string][]byte)
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		name, digits, _ := strings.Cut(s.Text(), " ")
		if c[name], err = hex.DecodeString(digits); err != nil {
			t.Fatal(err)
		}
	}

	fill := func(b []byte, first byte) {
		for i := range b {
			b[i] = first + byte(i)
		}
	}
	sb := Superblock{
		Version: VersionNative, BlockSize: BlockSize,
		TotalSize: 0x1122334455667788, BaseOffset: 0x2122334455667788, BaseSize: 0x3122334455667788, InodeOffset: 0x4122334455667788,
		InodeCount: 0x51223344, RootIno: RootIno, DataOffset: 0x6122334455667788,
		Incompat: IncompatLayer, ROCompat: 0x7122334455667788, Compat: CompatErofs | CompatPool,
		MetaOffset: 0x8122334455667788, MetaSize: 0x9122334455667788, XattrOffset: 0xa122334455667788, XattrSize: 0xb122334455667788,
		ExtentOffset: 0xc122334455667788, ExtentCount: 0xd122334455667788, LayerOffset: 0xe122334455667788, LayerCount: 0xf122334455667788,
		Entries: 0x0122334455667788, DataSize: 0x0222334455667788,
	}
	fill(sb.UUID[:], 1)
	fill(sb.MetaDigest[:], 100)
	super := make([]byte, SuperblockSize)
	sb.Encode(super)
	clear(super[SuperblockCRC : SuperblockCRC+4]) // the C program has none

	in := Inode{
		Ino: 0x11223344, Mode: 0x21223344, UID: 0x31223344, GID: 0x41223344, Size: 0x5122334455667788, DataOffset: 0x6122334455667788,
		Nlink: 0x71223344, Rdev: 0x81223344, Mtime: -3, MtimeNsec: 0x91223344, XattrSize: 0xa1223344, XattrOffset: 0xb122334455667788,
	}
	inode := make([]byte, InodeSize)
	in.Encode(inode)

	de := Dirent{Ino: 0x11223344, NameOff: 0x21223344, NameLen: 0x3122, Type: 4}
	dirent := make([]byte, DirentSize)
	de.Encode(dirent)

	v8 := make([]byte, DirentV8Stride)
	EncodeDirentV8(v8, 0x11223344, 0x21223344, strings.Repeat("n", MaxNameLen))

	ex := Extent{Size: 0x1122334455667788, Offset: 0x2122334455667788}
	fill(ex.Digest[:], 7)
	extent := make([]byte, ExtentSize)
	ex.Encode(extent)

	for name, want := range map[string][]byte{
		"super": super, "inode": inode, "dirent": dirent, "dirent_v8": v8, "extent": extent,
		"xattr": AppendXattr(nil, Xattr{"security.name", "value!"}),
	} {
		if !bytes.Equal(c[name], want) {
			t.Errorf("%s: C writes\n%x\nGo\n%x", name, c[name], want)
		}
	}
	if len(c) != 6 {
		t.Errorf("C prints %d records, want 6", len(c))
	}
}
