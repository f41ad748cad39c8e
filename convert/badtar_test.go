package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func fromTar(b []byte, s Store, opts TarOptions) error {
	_, _, err := FromTar(context.Background(), bytes.NewReader(b), s, opts)
	return err
}

// ustar takes an entry's nanoseconds, so that it has no PAX header of its own.
func ustar(e ent) ent {
	e.Format = tar.FormatUSTAR
	e.ModTime = entTime.Truncate(1e9)
	return e
}

// rawHeader patches the header of a one-entry archive and mends its checksum.
func rawHeader(t *testing.T, e ent, patch func(h []byte)) []byte {
	t.Helper()
	b := archive(t, ustar(e))
	patch(b[:512])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// paxRecord makes an archive whose one PAX record archive/tar would not write.
func paxRecord(t *testing.T, key, value string) []byte {
	t.Helper()
	rec := fmt.Sprintf(" %s=%s\n", key, value)
	n := len(rec)
	for len(fmt.Sprint(n))+len(rec) != n {
		n = len(fmt.Sprint(n)) + len(rec)
	}
	body := fmt.Sprint(n) + rec
	e := reg("PaxHeaders/x", body)
	e.Typeflag = tar.TypeReg
	b := rawHeader(t, e, func(h []byte) { h[156] = 'x' })
	return append(b[:len(b)-1024:len(b)-1024], archive(t, ustar(reg("f", "data")))...)
}

// TestBadTar gives what each bad entry must be refused for. Every error names
// the entry.
func TestBadTar(t *testing.T) {
	long := strings.Repeat("n", 256)
	deep := strings.Repeat("d/", 2048)
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"absolute name", archive(t, reg("/etc/passwd", "")), `tar entry "/etc/passwd": path is absolute`},
		{"dotdot", archive(t, reg("../x", "")), `tar entry "../x": path contains ".."`},
		{"dotdot inside", archive(t, reg("a/../../x", "")), `tar entry "a/../../x": path contains ".."`},
		{"name too long", archive(t, reg("d/"+long, "")), `": name of 256 bytes, want at most 255`},
		{"directory name too long", archive(t, reg(long+"/f", "")), `": name of 256 bytes, want at most 255`},
		{"path too long", archive(t, reg(deep+"f", "")), `": path of 4097 bytes, want at most 4095`},
		{"NUL in a PAX path", paxRecord(t, "path", "a\x00b"), `read tar header near byte `},
		{"whiteout of no name", archive(t, reg("d/.wh.", "")), `tar entry "d/.wh.": whiteout of "", which is not a file name`},
		{"whiteout of dot", archive(t, reg(".wh..", "")), `whiteout of ".", which is not a file name`},
		{"whiteout of dotdot", archive(t, reg("d/.wh...", "")), `whiteout of "..", which is not a file name`},
		{"file as root", archive(t, reg("./", "").with(func(h *tar.Header) { h.Name = "." })), `type '0' for the root, want a directory`},
		{"file as parent", archive(t, reg("f", ""), reg("f/x", "")), `tar entry "f/x": parent "f" is not a directory`},
		{"symlink in a circle as parent", archive(t, sym("a", "b"), sym("b", "a"), reg("a/x", "")), `tar entry "a/x": path crosses more than 40 symlinks`},
		{"symlink to a file as parent", archive(t, reg("f", ""), sym("s", "f"), reg("s/x", "")), `tar entry "s/x": parent "f" is not a directory`},
		{"symlink to nothing", rawHeader(t, sym("s", "x"), func(h []byte) { clear(h[157:257]) }), `tar entry "s": symlink target of 0 bytes, want 1 to 4095`},
		{"symlink target too long", archive(t, sym("s", strings.Repeat("t", 4096))), `tar entry "s": symlink target of 4096 bytes, want 1 to 4095`},
		{"hard link to a directory", archive(t, mkd("d"), lnk("h", "d")), `tar entry "h": hard link to "d", a directory`},
		{"hard link to the root", archive(t, lnk("h", ".")), `hard link to ".", a directory`},
		{"hard link out of the root", archive(t, lnk("h", "../../etc/shadow")), `hard link to "../../etc/shadow": path contains ".."`},
		{"hard link below a file", archive(t, reg("f", ""), lnk("h", "f/x")), `hard link to "f/x": parent "f" is not a directory`},
		{"unknown type", rawHeader(t, reg("f", ""), func(h []byte) { h[156] = 'Z' }), `tar entry "f": type 'Z' is not known`},
		{"multi-volume", rawHeader(t, reg("f", ""), func(h []byte) { h[156] = 'M' }), `tar entry "f": type 'M' is not known`},
		{"owner out of range", archive(t, reg("f", "").own(1<<32, 0)), `tar entry "f": owner 4294967296:0, want ids of 0 to 4294967294`},
		{"owner -1", archive(t, reg("f", "").own(0, 1<<32-1)), `want ids of 0 to 4294967294`},
		{"negative owner", func() []byte {
			e := reg("f", "").own(-5, 0)
			e.Format = tar.FormatGNU
			e.ModTime = entTime.Truncate(1e9)
			return archive(t, e)
		}(), `owner -5:0`},
		{"device major out of range", archive(t, entry(tar.TypeChar, "c").dev(4096, 0)), `tar entry "c": device 4096:0, want at most 4095:1048575`},
		{"device minor out of range", archive(t, entry(tar.TypeBlock, "b").dev(0, 1<<20)), `device 0:1048576, want at most`},
		{"negative device", func() []byte {
			e := entry(tar.TypeChar, "c").dev(-1, 0)
			e.Format = tar.FormatGNU
			e.ModTime = entTime.Truncate(1e9)
			return archive(t, e)
		}(), `device -1:0`},
		{"xattr too large", archive(t, reg("f", "").xattr("user.x", strings.Repeat("v", 65536))), `xattr "user.x" has 65536 bytes, want at most 65535`},
		{"too many xattrs", archive(t, func() ent {
			e := reg("f", "")
			for i := range 256 {
				e = e.xattr(fmt.Sprintf("user.%d", i), "")
			}
			return e
		}()), `256 xattrs, want at most 255`},
		{"checksum", func() []byte {
			b := archive(t, reg("f", "x"))
			b[0] ^= 1
			return b
		}(), `read tar header near byte 512: archive/tar: invalid tar header`},
		{"size not a number", rawHeader(t, reg("f", ""), func(h []byte) { copy(h[124:], "zzzzz") }), `read tar header near byte`},
		{"negative size", rawHeader(t, reg("f", ""), func(h []byte) {
			for i := 124; i < 136; i++ {
				h[i] = 0xff
			}
		}), `read tar header near byte`},
		{"PAX size not a number", paxRecord(t, "size", "1e3"), `read tar header near byte`},
		{"PAX record length", func() []byte {
			b := paxRecord(t, "comment", "xx")
			b[512] = '9'
			return b
		}(), `read tar header near byte`},
		{"not a tar", bytes.Repeat([]byte("no tar "), 500), `read tar header near byte 512: archive/tar: invalid tar header`},
		{"empty stream", nil, `tar ends at byte 0 without an end-of-archive block`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := fromTar(tt.in, new(memStore), TarOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			if !errors.Is(err, ErrBadLayer) && !errors.Is(err, ErrTruncated) && !errors.Is(err, mkdaxfs.ErrInvalidTree) {
				t.Errorf("%v is none of this package's errors", err)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v has no errdefs class", err)
			}
		})
	}
}

// TestPlainTarLinks: an archive that is no layer cannot link to one.
func TestPlainTarLinks(t *testing.T) {
	err := fromTar(archive(t, lnk("h", "no")), new(memStore), TarOptions{Plain: true})
	if want := `tar entry "h": hard link to "no", which is not there`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// TestTruncatedTar cuts an archive with every kind of entry at every block and
// around it, in PAX and GNU form: never a tree, always ErrTruncated.
func TestTruncatedTar(t *testing.T) {
	for _, format := range []tar.Format{tar.FormatPAX, tar.FormatGNU} {
		var ents []ent
		for _, e := range []ent{
			mkd("d"), reg("d/empty", ""), reg("d/small", "x"), reg("d/"+strings.Repeat("long", 60), strings.Repeat("x", 1500)),
			sym("s", strings.Repeat("t", 300)), lnk("h", "d/small"), entry(tar.TypeFifo, "p"),
		} {
			e.Format = format
			if format == tar.FormatGNU {
				e.ModTime = entTime.Truncate(1e9)
			}
			ents = append(ents, e)
		}
		b := archive(t, ents...)
		if err := fromTar(b, new(memStore), TarOptions{}); err != nil {
			t.Fatal(err)
		}
		end := len(b) - 1024
		for at := 0; at < len(b); at += 512 {
			for _, cut := range []int{at, at + 1, at + 256, at + 511} {
				err := fromTar(b[:cut], new(memStore), TarOptions{})
				// One block of zeros is enough for archive/tar, and says that
				// nothing is missing.
				if cut >= end+512 {
					if cut == end+512 && err != nil {
						t.Errorf("%v: cut at %d of %d, behind the end: %v", format, cut, len(b), err)
					}
					continue
				}
				if !errors.Is(err, ErrTruncated) {
					t.Errorf("%v: cut at %d of %d: %v, want ErrTruncated", format, cut, len(b), err)
				}
			}
		}
	}
}

// TestVerifiedTar: where a digest proves that nothing is missing, an archive
// needs no end, and may be empty.
func TestVerifiedTar(t *testing.T) {
	b := archive(t, reg("f", "x"))
	for _, b := range [][]byte{nil, b[:len(b)-1024], b[:len(b)-512], b} {
		if err := fromTar(b, new(memStore), TarOptions{Verified: true}); err != nil {
			t.Errorf("archive of %d bytes: %v", len(b), err)
		}
	}
	// The last content must be whole all the same.
	if err := fromTar(b[:1024+512], new(memStore), TarOptions{Verified: true}); !errors.Is(err, ErrTruncated) {
		t.Errorf("cut in content: %v", err)
	}
}

// TestSparseTar: sparse files of both kinds have their holes filled.
func TestSparseTar(t *testing.T) {
	// From GNU tar: `tar -S -c` of a 5 byte file at 64 KiB, in GNU and PAX
	// form, made by hand since archive/tar does not write them.
	gnu := rawGNUSparse(t, "s", []sparsePiece{{65536, "hello"}}, 65541)
	pax := paxSparse(t, "s", []sparsePiece{{65536, "hello"}}, 65541)
	for name, b := range map[string][]byte{"GNU": gnu, "PAX": pax} {
		s := new(memStore)
		tree, _, err := FromTar(context.Background(), bytes.NewReader(b), s, TarOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n := tree.Find("s")
		if n == nil || n.Size != 65541 {
			t.Errorf("%s: file is %+v", name, n)
			continue
		}
		c := s.content(n)
		if string(c[65536:]) != "hello" || len(bytes.Trim(c[:65536], "\x00")) != 0 {
			t.Errorf("%s: wrong content", name)
		}
		for cut := 512; cut < len(b)-1024; cut += 512 {
			if err := fromTar(b[:cut], new(memStore), TarOptions{}); err == nil {
				t.Errorf("%s: cut at %d passes", name, cut)
			}
		}
	}
}

type sparsePiece struct {
	off  int64
	data string
}

func rawGNUSparse(t *testing.T, name string, pieces []sparsePiece, size int64) []byte {
	t.Helper()
	var data string
	for _, p := range pieces {
		data += p.data
	}
	e := reg(name, data)
	return rawHeader(t, e, func(h []byte) {
		h[156] = 'S'
		copy(h[257:265], "ustar  \x00")
		clear(h[345:512])
		for i, p := range pieces {
			copy(h[386+24*i:], fmt.Sprintf("%011o\x00%011o\x00", p.off, len(p.data)))
		}
		copy(h[483:], fmt.Sprintf("%011o\x00", size))
	})
}

func paxSparse(t *testing.T, name string, pieces []sparsePiece, size int64) []byte {
	t.Helper()
	m := fmt.Sprintf("%d\n", len(pieces))
	var data string
	for _, p := range pieces {
		m += fmt.Sprintf("%d\n%d\n", p.off, len(p.data))
		data += p.data
	}
	m += strings.Repeat("\x00", 512-len(m)%512)
	body := ""
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", name}, {"GNU.sparse.realsize", fmt.Sprint(size)}} {
		rec := fmt.Sprintf(" %s=%s\n", kv[0], kv[1])
		n := len(rec) + 2
		body += fmt.Sprintf("%d%s", n, rec)
	}
	x := rawHeader(t, reg("PaxHeaders/x", body), func(h []byte) { h[156] = 'x' })
	return append(x[:len(x)-1024:len(x)-1024], archive(t, ustar(reg("GNUSparseFile.0/s", m+data)))...)
}

// failing is a store whose file system is in trouble.
type failing struct{ err error }

func (f failing) Put(context.Context, io.Reader, int64) (mkdaxfs.Extent, error) {
	return mkdaxfs.Extent{}, f.err
}

func TestStoreErrors(t *testing.T) {
	for _, tt := range []struct {
		err   error
		class func(error) bool
	}{
		{&os.PathError{Op: "write", Path: "pool", Err: unix.ENOSPC}, errdefs.IsResourceExhausted},
		{&os.PathError{Op: "write", Path: "pool", Err: unix.EACCES}, errdefs.IsPermissionDenied},
	} {
		err := fromTar(archive(t, reg("f", "x")), failing{tt.err}, TarOptions{})
		if !tt.class(err) || !errors.Is(err, tt.err) || !strings.Contains(err.Error(), `tar entry "f"`) {
			t.Errorf("store fails with %v: %v has the wrong class or no name", tt.err, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := FromTar(ctx, bytes.NewReader(archive(t, reg("f", "x"))), new(memStore), TarOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
