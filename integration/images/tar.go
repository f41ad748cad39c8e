package images

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// layerTar writes a layer entry by entry, in exactly the order it is told. The
// first error sticks and comes out of close.
type layerTar struct {
	w   io.Writer
	tw  *tar.Writer
	n   int64 // entries so far; gives each one an mtime of its own
	err error
}

func newLayerTar(w io.Writer) *layerTar { return &layerTar{w: w, tw: tar.NewWriter(w)} }

// opt changes a header before it is written.
type opt func(*tar.Header)

func mode(m int64) opt { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) opt {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}
func mtime(t time.Time) opt { return func(h *tar.Header) { h.ModTime = t } }
func xattr(name, value string) opt {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func (t *layerTar) put(h *tar.Header, content string, opts []opt) {
	if t.err != nil {
		return
	}
	t.n++
	h.Format = tar.FormatPAX
	h.Size = int64(len(content))
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1600000000+t.n, 100000000+t.n*1001)
	}
	for _, o := range opts {
		o(h)
	}
	if err := t.tw.WriteHeader(h); err != nil {
		t.err = fmt.Errorf("%q: %w", h.Name, err)
		return
	}
	_, t.err = io.WriteString(t.tw, content)
}

func (t *layerTar) dir(name string, opts ...opt) {
	t.put(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, "", opts)
}

func (t *layerTar) file(name, content string, opts ...opt) {
	t.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content, opts)
}

func (t *layerTar) symlink(name, target string, opts ...opt) {
	t.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "", opts)
}

// link takes the mode and times that its target has, as real archivers write
// them: an applier sets them on the shared inode again.
func (t *layerTar) link(name, target string, opts ...opt) {
	t.put(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, "", opts)
}

func (t *layerTar) node(typ byte, name string, major, minor int64, opts ...opt) {
	t.put(&tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}, "", opts)
}

// whiteout removes name, of a lower layer.
func (t *layerTar) whiteout(name string) {
	dir, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i+1], name[i+1:]
	}
	t.file(dir+".wh."+base, "", mode(0))
}

// opaque hides everything that lower layers have in dir.
func (t *layerTar) opaque(dir string) { t.file(dir+"/.wh..wh..opq", "", mode(0)) }

func (t *layerTar) globalHeader() {
	if t.err == nil {
		t.err = t.tw.WriteHeader(&tar.Header{
			Typeflag:   tar.TypeXGlobalHeader,
			PAXRecords: map[string]string{"comment": "as git archive writes it"},
		})
	}
}

// sparse writes a PAX 1.0 sparse file, which archive/tar reads but refuses to
// write: data of each extent, holes between them up to size.
func (t *layerTar) sparse(name string, size int64, extents map[int64]string, order []int64) {
	if t.err != nil {
		return
	}
	t.n++
	if t.err = t.tw.Flush(); t.err != nil {
		return
	}
	var sparseMap, data bytes.Buffer
	fmt.Fprintf(&sparseMap, "%d\n", len(order))
	for _, off := range order {
		fmt.Fprintf(&sparseMap, "%d\n%d\n", off, len(extents[off]))
		data.WriteString(extents[off])
	}
	pad(&sparseMap)
	body := append(sparseMap.Bytes(), data.Bytes()...)

	var pax bytes.Buffer
	record(&pax, "GNU.sparse.major", "1")
	record(&pax, "GNU.sparse.minor", "0")
	record(&pax, "GNU.sparse.name", name)
	record(&pax, "GNU.sparse.realsize", fmt.Sprint(size))
	record(&pax, "mtime", "1600000000.25")

	var out bytes.Buffer
	for _, part := range []struct {
		typ  byte
		name string
		body []byte
	}{{tar.TypeXHeader, "PaxHeaders/sparse", pax.Bytes()}, {tar.TypeReg, "GNUSparseFile.0/sparse", body}} {
		h := make([]byte, 512)
		copy(h, part.name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00", len(part.body)))
		copy(h[136:], fmt.Sprintf("%011o\x00", 1600000000))
		h[156] = part.typ
		copy(h[257:], "ustar\x0000")
		copy(h[148:], "        ")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		out.Write(h)
		out.Write(part.body)
		pad(&out)
	}
	_, t.err = t.w.Write(out.Bytes())
}

func (t *layerTar) close() error {
	if t.err != nil {
		return t.err
	}
	return t.tw.Close()
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&511)) }

// record appends a PAX record, whose length counts itself.
func record(b *bytes.Buffer, key, value string) {
	n := len(key) + len(value) + 3
	for n != len(fmt.Sprintf("%d %s=%s\n", n, key, value)) {
		n = len(fmt.Sprintf("%d %s=%s\n", n, key, value))
	}
	fmt.Fprintf(b, "%d %s=%s\n", n, key, value)
}

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	b := make([]byte, n)
	_, _ = r.Read(b) // never fails
	return string(b)
}

// acl is the value of a system.posix_acl_* xattr (acl(5), struct
// posix_acl_xattr_header): version 2, then tag, permissions and id of each entry.
func acl(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}
