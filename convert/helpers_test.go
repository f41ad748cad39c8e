package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// memStore keeps contents in memory, equal ones once, like a pool.
type memStore struct {
	files map[int64][]byte // by offset
	known map[[32]byte]mkdaxfs.Extent
	end   int64
}

func (s *memStore) Put(_ context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	var buf bytes.Buffer
	// A claimed size is not believed before the bytes are there.
	if n, err := io.CopyN(&buf, r, size); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return mkdaxfs.Extent{}, fmt.Errorf("%d bytes, want %d: %w", n, size, err)
	}
	digest := sha256.Sum256(buf.Bytes())
	if e, ok := s.known[digest]; ok {
		return e, nil
	}
	if s.known == nil {
		s.known = make(map[[32]byte]mkdaxfs.Extent)
		s.files = make(map[int64][]byte)
		s.end = disk.BlockSize
	}
	e := mkdaxfs.Extent{Offset: s.end, Digest: digest}
	s.end += disk.AlignUp(size, disk.BlockSize)
	s.files[e.Offset], s.known[digest] = buf.Bytes(), e
	return e, nil
}

func (s *memStore) content(n *mkdaxfs.Node) []byte {
	if n.Size == 0 {
		return nil
	}
	return s.files[n.Extent.Offset]
}

// ent is an entry of a test archive.
type ent struct {
	tar.Header
	content string
}

var entTime = time.Unix(1_000, 5)

func entry(typ byte, name string) ent {
	return ent{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o644, ModTime: entTime, Format: tar.FormatPAX}}
}

func reg(name, content string) ent {
	e := entry(tar.TypeReg, name)
	e.content, e.Size = content, int64(len(content))
	return e
}

func mkd(name string) ent {
	e := entry(tar.TypeDir, name)
	e.Mode = 0o755
	return e
}

func sym(name, target string) ent {
	e := entry(tar.TypeSymlink, name)
	e.Linkname = target
	return e
}

func lnk(name, target string) ent {
	e := entry(tar.TypeLink, name)
	e.Linkname = target
	return e
}

func (e ent) with(fn func(*tar.Header)) ent {
	h := e.Header
	h.PAXRecords = make(map[string]string)
	for k, v := range e.PAXRecords {
		h.PAXRecords[k] = v
	}
	fn(&h)
	return ent{h, e.content}
}

func (e ent) mode(m int64) ent { return e.with(func(h *tar.Header) { h.Mode = m }) }
func (e ent) own(uid, gid int) ent {
	return e.with(func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}
func (e ent) at(sec, nsec int64) ent {
	return e.with(func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) })
}
func (e ent) dev(major, minor int64) ent {
	return e.with(func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
}
func (e ent) xattr(name, value string) ent {
	return e.with(func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+name] = value })
}

// archive writes a tar.
func archive(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range ents {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layerTree reads a tar as a layer.
func layerTree(t testing.TB, s Store, ents ...ent) *mkdaxfs.Tree {
	t.Helper()
	tree, _, err := FromTar(context.Background(), bytes.NewReader(archive(t, ents...)), s, TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// show describes a tree, a line a name: type, what it holds, link count if not
// 1, metadata if not the usual, attributes. Names of one hard-linked file show
// the first of them.
func show(t testing.TB, s *memStore, tree *mkdaxfs.Tree) string {
	t.Helper()
	names := make(map[*mkdaxfs.Node][]string)
	var paths []string
	nodes := make(map[string]*mkdaxfs.Node)
	if err := tree.Walk(func(p string, n *mkdaxfs.Node) error {
		if _, ok := nodes[p]; ok {
			t.Errorf("%q is there twice", p)
		}
		nodes[p] = n
		paths = append(paths, p)
		names[n] = append(names[n], p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sort.Strings(paths)
	var b strings.Builder
	for _, p := range paths {
		n := nodes[p]
		fmt.Fprintf(&b, "%s", p)
		usual := uint32(0o644)
		switch n.Mode & disk.TypeMask {
		case disk.TypeDir:
			usual = 0o755
			b.WriteString("/")
		case disk.TypeSymlink:
			usual = 0o777
			fmt.Fprintf(&b, " -> %s", n.Link)
		case disk.TypeRegular:
			fmt.Fprintf(&b, " %q", s.content(n))
		case disk.TypeFIFO:
			b.WriteString(" fifo")
		default:
			major, minor := disk.DecodeDev(n.Rdev)
			kind := "block"
			if n.Mode&disk.TypeMask == disk.TypeChar {
				kind = "char"
			}
			if n.IsWhiteout() {
				kind, usual = "whiteout", 0
			}
			fmt.Fprintf(&b, " %s %d:%d", kind, major, minor)
		}
		if m := n.Mode & 0o7777; m != usual {
			fmt.Fprintf(&b, " mode=%o", m)
		}
		if n.UID != 0 || n.GID != 0 {
			fmt.Fprintf(&b, " own=%d:%d", n.UID, n.GID)
		}
		if n.Mtime != entTime.Unix() || n.MtimeNsec != uint32(entTime.Nanosecond()) {
			if !n.IsWhiteout() {
				fmt.Fprintf(&b, " time=%d.%d", n.Mtime, n.MtimeNsec)
			}
		}
		for _, x := range n.Xattrs {
			fmt.Fprintf(&b, " %s=%q", x.Name, x.Value)
		}
		if same := names[n]; len(same) > 1 {
			if n.IsDir() {
				t.Errorf("directory has the names %q", same)
			}
			if same[0] != p {
				fmt.Fprintf(&b, " == %s", same[0])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// wantTree compares; want's lines may be indented.
func wantTree(t *testing.T, s *memStore, tree *mkdaxfs.Tree, want string) {
	t.Helper()
	got := show(t, s, tree)
	var lines []string
	for _, l := range strings.Split(strings.TrimSpace(want), "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	if w := strings.Join(lines, "\n") + "\n"; got != w {
		t.Errorf("got\n%s\nwant\n%s", got, w)
	}
	checkTree(t, tree)
}

// checkTree emits the tree and proves the result, as what stands before every
// kernel does.
func checkTree(t testing.TB, tree *mkdaxfs.Tree) {
	t.Helper()
	layer := false
	_ = tree.Nodes(func(n *mkdaxfs.Node) error {
		_, link := n.Xattr(MarkLink)
		layer = layer || n.IsWhiteout() || isImplicit(n) || isOpaque(n) || link
		return nil
	})
	l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: layer})
	if err != nil {
		t.Fatal(err)
	}
	const start, size = 1 << 30, 1 << 31
	super, meta, err := l.Emit(mkdaxfs.Place{Super: 0, Meta: start, End: size})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mkdaxfs.Open(&sparse{map[int64][]byte{0: super, start: meta}}, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mkdaxfs.Check(img, 0); err != nil {
		t.Fatal(err)
	}
}

// sparse reads as zeros but for some pieces.
type sparse struct{ pieces map[int64][]byte }

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range s.pieces {
		if lo, hi := max(off, at), min(off+int64(len(p)), at+int64(len(b))); lo < hi {
			copy(p[lo-off:], b[lo-at:hi-at])
		}
	}
	return len(p), nil
}
