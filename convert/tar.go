package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

const (
	whiteoutPrefix = ".wh."         // OCI image-spec, layer.md, "Whiteouts"
	opaqueMarker   = ".wh..wh..opq" // the same, "Opaque Whiteout"
	maxPath        = 4095           // PATH_MAX - 1
	maxSymlinks    = 40             // as the kernel's MAXSYMLINKS
)

// TarOptions says how an archive is read.
type TarOptions struct {
	// Plain reads an archive that is not a layer: names with the whiteout
	// prefix are ordinary files, and hard links must stay inside.
	Plain bool
	// Verified says that the caller compares a digest of the whole stream, so
	// that an archive without end-of-archive blocks need not be taken for a
	// truncated one: containerd unpacks such layers, and even empty ones.
	Verified bool
	// MaxTime, if not zero, is the latest modification time in seconds since
	// 1970: later ones become it (SOURCE_DATE_EPOCH).
	MaxTime int64
	// Progress, if not nil, is told the bytes of file data read so far.
	Progress func(bytes int64)
}

// FromTar reads one uncompressed tar stream in one pass; file contents go to
// store. The result is a sorted layer tree. r is read to its end, so that a
// hash over it is complete.
//
// Names must be relative and must not contain "..": errors name the entry and
// wrap ErrBadLayer or ErrTruncated.
func FromTar(ctx context.Context, r io.Reader, store Store, opts TarOptions) (*mkdaxfs.Tree, []Warning, error) {
	t := &tarImport{store: store, opts: opts, root: implicitDir()}
	end := &trailer{r: r}
	tr := tar.NewReader(end)
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, tarError(end.n, err)
		}
		if err := t.entry(ctx, hdr, tr); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %w", err, ErrTruncated)
			}
			return nil, nil, fmt.Errorf("tar entry %q: %w", hdr.Name, err)
		}
	}
	if !opts.Verified && !end.zero() {
		return nil, nil, fmt.Errorf("tar ends at byte %d without an end-of-archive block: %w", end.n, ErrTruncated)
	}
	if _, err := io.Copy(io.Discard, end); err != nil {
		return nil, nil, fmt.Errorf("read behind the tar's end: %w", err)
	}
	if !opts.Plain {
		t.markOpaque()
	}
	tree := &mkdaxfs.Tree{Root: t.root}
	tree.Sort()
	return tree, t.warnings, nil
}

func tarError(at int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read tar header near byte %d: %w: %w", at, err, ErrTruncated)
	}
	if errors.Is(err, tar.ErrHeader) {
		return fmt.Errorf("read tar header near byte %d: %w: %w", at, err, ErrBadLayer)
	}
	return fmt.Errorf("read tar header near byte %d: %w", at, err)
}

// trailer remembers whether the last block read was one of zeros, which is how
// an archive ends; archive/tar takes a stream cut between two entries for a
// whole one.
type trailer struct {
	r    io.Reader
	n    int64
	last [512]byte
}

func (t *trailer) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n += int64(n)
	if n >= len(t.last) {
		copy(t.last[:], p[n-len(t.last):n])
	} else if n > 0 {
		copy(t.last[:], t.last[n:])
		copy(t.last[len(t.last)-n:], p[:n])
	}
	return n, err
}

func (t *trailer) zero() bool {
	return t.n >= int64(len(t.last)) && bytes.Equal(t.last[:], make([]byte, len(t.last)))
}

type tarImport struct {
	store    Store
	opts     TarOptions
	root     *mkdaxfs.Node
	warnings []Warning
	bytes    int64
	// whited are the names that the layer whites out, by directory. They are
	// about lower layers only, wherever in the archive they stand, so they are
	// applied at the end.
	whited []whited
}

type whited struct {
	dir  *mkdaxfs.Node
	name string
}

func (t *tarImport) warn(path, reason string) {
	t.warnings = append(t.warnings, Warning{path, reason})
}

// splitName checks a name and returns its elements; none for the root.
func splitName(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("path of %d bytes, want at most %d: %w", len(name), maxPath, ErrBadLayer)
	}
	if strings.HasPrefix(name, "/") {
		return nil, fmt.Errorf("path is absolute: %w", ErrBadLayer)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("path contains NUL: %w", ErrBadLayer)
	}
	var out []string
	for _, e := range strings.Split(name, "/") {
		switch {
		case e == "" || e == ".":
		case e == "..":
			return nil, fmt.Errorf("path contains %q: %w", "..", ErrBadLayer)
		case len(e) > disk.MaxNameLen:
			return nil, fmt.Errorf("name of %d bytes, want at most %d: %w", len(e), disk.MaxNameLen, ErrBadLayer)
		default:
			out = append(out, e)
		}
	}
	return out, nil
}

// parent returns the directory for the elements of a path, following symlinks
// of this layer inside its root, and making what is missing.
func (t *tarImport) parent(elems []string) (*mkdaxfs.Node, error) {
	stack := []*mkdaxfs.Node{t.root}
	links := 0
	todo := elems
	for len(todo) > 0 {
		e := todo[0]
		todo = todo[1:]
		dir := stack[len(stack)-1]
		switch e {
		case "", ".":
			continue
		case "..": // from a symlink
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		n := dir.Lookup(e)
		switch {
		case n == nil:
			n = implicitDir()
			dir.Set(e, n)
		case n.IsSymlink():
			if links++; links > maxSymlinks {
				return nil, fmt.Errorf("path crosses more than %d symlinks: %w", maxSymlinks, ErrBadLayer)
			}
			if strings.HasPrefix(n.Link, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(n.Link, "/"), todo...)
			continue
		case !n.IsDir():
			return nil, fmt.Errorf("parent %q is not a directory: %w", e, ErrBadLayer)
		}
		stack = append(stack, n)
	}
	return stack[len(stack)-1], nil
}

func (t *tarImport) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	elems, err := splitName(hdr.Name)
	if err != nil {
		return err
	}
	if len(elems) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("type %q for the root, want a directory: %w", hdr.Typeflag, ErrBadLayer)
		}
		n, err := t.node(hdr, "/")
		if err != nil {
			return err
		}
		n.Children = t.root.Children
		*t.root = *n
		return nil
	}
	base := elems[len(elems)-1]
	dir, err := t.parent(elems[:len(elems)-1])
	if err != nil {
		return err
	}
	if !t.opts.Plain && strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(dir, base)
	}
	if hdr.Typeflag == tar.TypeLink {
		return t.link(hdr, dir, base)
	}
	n, err := t.node(hdr, hdr.Name)
	if err != nil {
		return err
	}
	old := dir.Lookup(base)
	if n.IsRegular() && hdr.Size > 0 {
		n.Size = hdr.Size
		if n.Extent, err = t.store.Put(ctx, r, hdr.Size); err != nil {
			return storeError(err)
		}
		t.bytes += hdr.Size
		if t.opts.Progress != nil {
			t.opts.Progress(t.bytes)
		}
	}
	if old != nil && old.IsDir() && n.IsDir() {
		// A second entry for a directory changes its metadata only. The node
		// stays, since whiteouts may refer to it.
		n.Children = old.Children
		children := old.Children
		*old = *n
		old.Children = children
		return nil
	}
	dir.Set(base, n)
	return nil
}

func (t *tarImport) whiteout(dir *mkdaxfs.Node, base string) error {
	if base == opaqueMarker {
		t.whited = append(t.whited, whited{dir, ""})
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if err := disk.CheckName([]byte(name)); err != nil {
		return fmt.Errorf("whiteout of %q, which is not a file name: %w", name, ErrBadLayer)
	}
	t.whited = append(t.whited, whited{dir, name})
	return nil
}

// markOpaque applies the whiteouts. What the layer itself has under a name
// that it whites out stays, but nothing of lower layers shows through.
func (t *tarImport) markOpaque() {
	for _, w := range t.whited {
		if w.name == "" {
			w.dir.SetXattr(MarkOpaque, "y")
			continue
		}
		switch n := w.dir.Lookup(w.name); {
		case n == nil:
			w.dir.Set(w.name, whiteout())
		case n.IsDir():
			n.SetXattr(MarkOpaque, "y")
			// Whited out and made again only by its children: the lower
			// directory's metadata is gone too.
			if isImplicit(n) {
				n.SetXattrs(n.WithoutXattr(MarkImplicit))
			}
		}
	}
}

func (t *tarImport) link(hdr *tar.Header, dir *mkdaxfs.Node, base string) error {
	elems, err := splitName(strings.TrimPrefix(hdr.Linkname, "/"))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	target := (&mkdaxfs.Tree{Root: t.root}).Find(strings.Join(elems, "/"))
	switch {
	case len(elems) == 0 || target != nil && target.IsDir():
		return fmt.Errorf("hard link to %q, a directory: %w", hdr.Linkname, ErrBadLayer)
	case target == nil && t.opts.Plain:
		return fmt.Errorf("hard link to %q, which is not there: %w", hdr.Linkname, ErrBadLayer)
	case target == nil:
		// Of a lower layer: Merge finds it, or says that it does not exist.
		target = &mkdaxfs.Node{Mode: disk.TypeRegular, Xattrs: []disk.Xattr{{Name: MarkLink, Value: strings.Join(elems, "/")}}}
	}
	if dir.Lookup(base) == target {
		return nil
	}
	dir.Set(base, target)
	return nil
}

// node makes a node with a header's metadata.
func (t *tarImport) node(hdr *tar.Header, path string) (*mkdaxfs.Node, error) {
	n := &mkdaxfs.Node{Mode: uint32(hdr.Mode & 0o7777)}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, '\x00':
		n.Mode |= disk.TypeRegular
		if hdr.Size < 0 {
			return nil, fmt.Errorf("size %d: %w", hdr.Size, ErrBadLayer)
		}
	case tar.TypeDir:
		n.Mode |= disk.TypeDir
	case tar.TypeSymlink:
		// What Linux shows for every symlink.
		n.Mode = disk.TypeSymlink | 0o777
		if n.Link = hdr.Linkname; n.Link == "" || len(n.Link) > disk.MaxLinkLen || strings.IndexByte(n.Link, 0) >= 0 {
			return nil, fmt.Errorf("symlink target of %d bytes, want 1 to %d without NUL: %w", len(n.Link), disk.MaxLinkLen, ErrBadLayer)
		}
	case tar.TypeChar:
		n.Mode |= disk.TypeChar
	case tar.TypeBlock:
		n.Mode |= disk.TypeBlock
	case tar.TypeFifo:
		n.Mode |= disk.TypeFIFO
	default:
		return nil, fmt.Errorf("type %q is not known: %w", hdr.Typeflag, ErrBadLayer)
	}
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || uint64(id) >= math.MaxUint32 {
			return nil, fmt.Errorf("owner %d:%d, want ids of 0 to %d: %w", hdr.Uid, hdr.Gid, uint32(math.MaxUint32-1), ErrBadLayer)
		}
	}
	n.UID, n.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	if disk.HasRdev(n.Mode) {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device %d:%d, want at most %d:%d: %w", hdr.Devmajor, hdr.Devminor, 1<<12-1, 1<<20-1, ErrBadLayer)
		}
		n.Rdev = disk.EncodeDev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	n.Mtime, n.MtimeNsec = hdr.ModTime.Unix(), uint32(hdr.ModTime.Nanosecond())
	clampTime(n, t.opts.MaxTime)
	var xs []disk.Xattr
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if reason := xattrLoss(n, name, value); reason != "" {
			t.warn(path, reason)
			continue
		}
		xs = append(xs, disk.Xattr{Name: name, Value: value})
	}
	if len(xs) > 0 {
		n.SetXattrs(xs)
		if err := mkdaxfs.CheckXattrs(path, n.Xattrs); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// xattrLoss says why an attribute of an archive is left out, or "". They are
// those that no Linux file system would take, and overlayfs's own, with which
// an image could steer its own merge.
func xattrLoss(n *mkdaxfs.Node, name, value string) string {
	if strings.HasPrefix(name, overlayPrefix) || strings.HasPrefix(name, daxfsPrefix) {
		return fmt.Sprintf("xattr %q is reserved", name)
	}
	if strings.HasPrefix(name, "user.") && !n.IsRegular() && !n.IsDir() {
		return fmt.Sprintf("xattr %q is possible on files and directories only", name)
	}
	if _, _, ok := disk.SplitXattr(name); !ok {
		return fmt.Sprintf("xattr %q is in no namespace that the format knows", name)
	}
	return ""
}

func clampTime(n *mkdaxfs.Node, limit int64) {
	if limit != 0 && (n.Mtime > limit || n.Mtime == limit && n.MtimeNsec > 0) {
		n.Mtime, n.MtimeNsec = limit, 0
	}
}
