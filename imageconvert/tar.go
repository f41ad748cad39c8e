package imageconvert

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

const (
	// xattrRecord is what archives of layers have attributes in: PAX records of
	// star (OCI image-spec, layer.md, "File Attributes").
	xattrRecord    = "SCHILY.xattr."
	whiteoutPrefix = ".wh." // layer.md, "Whiteouts"
	copyBuffer     = 1 << 20
)

// writeTar writes a tree as a layer: each directory before what is in it, in
// order of names, the root included. File data is in data, at the tree's extents.
func writeTar(ctx context.Context, w io.Writer, tree *mkdaxfs.Tree, data io.ReaderAt) error {
	t := &tarWriter{Writer: tar.NewWriter(w), data: data, names: make(map[*mkdaxfs.Node]string), buf: make([]byte, copyBuffer)}
	err := tree.Walk(func(path string, n *mkdaxfs.Node) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.entry(path, n); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Close()
}

type tarWriter struct {
	*tar.Writer
	data  io.ReaderAt
	names map[*mkdaxfs.Node]string // the first of each file
	buf   []byte
}

func (t *tarWriter) entry(path string, n *mkdaxfs.Node) error {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: path, Mode: int64(n.Mode &^ disk.TypeMask),
		Uid: int(n.UID), Gid: int(n.GID), ModTime: time.Unix(n.Mtime, int64(n.MtimeNsec)),
	}
	if base := path[strings.LastIndexByte(path, '/')+1:]; strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("in a layer the name would remove another: %w", errdefs.ErrNotImplemented)
	}
	if err := setXattrs(h, n); err != nil {
		return err
	}
	if first, ok := t.names[n]; ok && !n.IsDir() {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return t.WriteHeader(h)
	}
	t.names[n] = path
	switch n.Mode & disk.TypeMask {
	case disk.TypeDir:
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case disk.TypeRegular:
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case disk.TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Link
	case disk.TypeFIFO:
		h.Typeflag = tar.TypeFifo
	case disk.TypeChar, disk.TypeBlock:
		h.Typeflag = tar.TypeChar
		if n.Mode&disk.TypeMask == disk.TypeBlock {
			h.Typeflag = tar.TypeBlock
		}
		major, minor := disk.DecodeDev(n.Rdev)
		h.Devmajor, h.Devminor = int64(major), int64(minor)
	default:
		return fmt.Errorf("mode %#o, which an archive cannot say: %w", n.Mode, errdefs.ErrNotImplemented)
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 {
		return nil
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{t}, struct{ io.Reader }{io.NewSectionReader(t.data, n.Extent.Offset, n.Size)}, t.buf)
	return err
}

func setXattrs(h *tar.Header, n *mkdaxfs.Node) error {
	if len(n.Xattrs) == 0 {
		return nil
	}
	h.PAXRecords = make(map[string]string, len(n.Xattrs))
	for _, x := range n.Xattrs {
		if strings.ContainsAny(x.Name, "=\x00") {
			return fmt.Errorf("attribute %q, whose name an archive cannot say: %w", x.Name, errdefs.ErrNotImplemented)
		}
		h.PAXRecords[xattrRecord+x.Name] = x.Value
	}
	return nil
}
