package convert

import (
	"archive/tar"
	"bytes"
	"cmp"
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
	// Lenient takes names as containerd's own differ does: absolute ones, and
	// ".." which leads no higher than the root.
	Lenient bool
	// MaxTime, if not zero, is the latest modification time in seconds since
	// 1970: later ones become it (SOURCE_DATE_EPOCH).
	MaxTime int64
	// MaxMeta is the most memory in bytes that the tree may take, about; 0 means
	// DefaultMaxMeta. Archives of nothing but names compress to a thousandth.
	MaxMeta int64
	// MaxSize is the largest length of the stream in bytes, all that is behind the
	// archive included; 0 is no limit.
	MaxSize int64
	// Progress, if not nil, is told the bytes of file data read so far.
	Progress func(bytes int64)
}

// DefaultMaxMeta is enough for a layer of about three million files.
const DefaultMaxMeta = 1 << 30

// nodeMemory is what a file takes in memory beside its name and attributes.
const nodeMemory = 256

// FromTar reads one uncompressed tar stream in one pass; file contents go to
// store. The result is a sorted layer tree. r is read to its end, so that a
// hash over it is complete.
//
// Names must be relative and must not contain "..", if not opts.Lenient: errors
// name the entry and wrap ErrBadLayer, ErrTruncated or ErrTooLarge.
func FromTar(ctx context.Context, r io.Reader, store Store, opts TarOptions) (*mkdaxfs.Tree, []Warning, error) {
	t := &tarImport{store: store, opts: opts, below: make(map[string]*mkdaxfs.Node)}
	t.root = t.missingDir()
	end := &trailer{r: r, max: cmp.Or(opts.MaxSize, math.MaxInt64)}
	tr := tar.NewReader(end)
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, tarError(end.n, err)
		}
		err = t.charge(hdr)
		if err == nil {
			err = t.entry(ctx, hdr, tr)
		}
		if err != nil {
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
// whole one. More than max bytes are an error.
type trailer struct {
	r      io.Reader
	n, max int64
	last   [512]byte
}

func (t *trailer) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if t.n += int64(n); t.n > t.max {
		return 0, fmt.Errorf("layer of more than %d bytes: %w", t.max, ErrTooLarge)
	}
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
	meta     int64                    // memory of the tree, about
	below    map[string]*mkdaxfs.Node // links to files of lower layers, by their path
	// whited are the names that the layer whites out, by directory. They are
	// about lower layers only, wherever in the archive they stand, so they are
	// applied at the end.
	whited []whited
}

type whited struct {
	dir  *mkdaxfs.Node
	name string
}

// charge accounts for what an entry adds to the tree, but for the directories above
// it, for which missingDir does.
func (t *tarImport) charge(hdr *tar.Header) error {
	t.meta += nodeMemory + int64(len(hdr.Name)+len(hdr.Linkname))
	for k, v := range hdr.PAXRecords {
		t.meta += int64(len(k) + len(v))
	}
	if limit := cmp.Or(t.opts.MaxMeta, DefaultMaxMeta); t.meta > limit {
		return fmt.Errorf("names and attributes so far take %d bytes of memory, want at most %d: %w", t.meta, limit, ErrTooLarge)
	}
	return nil
}

func (t *tarImport) warn(path, reason string) {
	t.warnings = append(t.warnings, Warning{path, reason})
}

func (t *tarImport) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	elems, err := t.split(hdr.Name)
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
	elems, err := t.split(strings.TrimPrefix(hdr.Linkname, "/"))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	if len(elems) == 0 {
		return fmt.Errorf("hard link to %q, a directory: %w", hdr.Linkname, ErrBadLayer)
	}
	last := len(elems) - 1
	in, real, err := t.walk(elems[:last], false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	var target *mkdaxfs.Node
	if in != nil {
		target = in.Lookup(elems[last])
	}
	switch {
	case target != nil && target.IsDir():
		return fmt.Errorf("hard link to %q, a directory: %w", hdr.Linkname, ErrBadLayer)
	case target == nil && t.opts.Plain:
		return fmt.Errorf("hard link to %q, which is not there: %w", hdr.Linkname, ErrBadLayer)
	case target == nil:
		// Of a lower layer: Merge finds it, or says that it does not exist. All
		// links to it are one file, so that the last one says what it is like.
		path := strings.Join(append(real, elems[last]), "/")
		if target = t.below[path]; target == nil {
			target = &mkdaxfs.Node{Mode: disk.TypeRegular, Xattrs: []disk.Xattr{{Name: MarkLink, Value: path}}}
			t.below[path] = target
		}
	}
	if dir.Lookup(base) != target {
		dir.Set(base, target)
	}
	return t.again(target, hdr)
}
