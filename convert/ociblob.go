package convert

import (
	"context"
	_ "crypto/sha512" // digests of blobs may be SHA-512
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// json reads and verifies a blob and decodes it.
func (l *layout) json(what string, d ocispec.Descriptor, v any) error {
	fail := func(err error) error { return fmt.Errorf("%s %s: %w", what, d.Digest, err) }
	if d.Size > maxJSON {
		return fail(fmt.Errorf("%d bytes, want at most %d: %w", d.Size, maxJSON, errdefs.ErrInvalidArgument))
	}
	blob, err := openBlob(l.dir, d)
	if err != nil {
		return fail(err)
	}
	defer blob.close()
	b, err := io.ReadAll(blob)
	if err != nil {
		return fail(err)
	}
	if err := blob.verify(); err != nil {
		return fail(err)
	}
	if err := checkKind(b, d.MediaType); err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fail(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
	}
	return nil
}

// checkKind refuses a document that is both manifest and index, so that one
// digest cannot mean two things (CVE-2021-41190; containerd does the same).
func checkKind(b []byte, mediaType string) error {
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
	}
	if images.IsConfigType(mediaType) {
		return nil
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	index := images.IsIndexType(mediaType)
	if index && (doc.Config != nil || doc.Layers != nil || images.IsManifestType(doc.MediaType)) ||
		!index && (doc.Manifests != nil || images.IsIndexType(doc.MediaType)) {
		return fmt.Errorf("is referred to as %q, and is something else: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	return nil
}

// blob reads one blob and hashes it.
type blob struct {
	io.Reader
	f    *os.File
	d    ocispec.Descriptor
	hash digest.Digester
}

func openBlob(dir string, d ocispec.Descriptor) (*blob, error) {
	// Before it becomes part of a path.
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(filepath.Join(dir, ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("blob is missing: %w: %w", err, errdefs.ErrNotFound)
		}
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != d.Size {
		err = fmt.Errorf("blob has %d bytes, want %d: %w", fi.Size(), d.Size, ErrDigest)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	b := &blob{f: f, d: d, hash: d.Digest.Algorithm().Digester()}
	b.Reader = io.TeeReader(io.LimitReader(f, d.Size), b.hash.Hash())
	return b, nil
}

func (b *blob) close() { b.f.Close() }

// verify compares the digest; the blob must have been read to its end.
func (b *blob) verify() error {
	if got := b.hash.Digest(); got != b.d.Digest {
		return fmt.Errorf("blob has digest %s: %w", got, ErrDigest)
	}
	return nil
}

func verifyBlob(dir string, d ocispec.Descriptor) error {
	b, err := openBlob(dir, d)
	if err != nil {
		return err
	}
	defer b.close()
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	return b.verify()
}

// LayerTree reads layer i (0 is the lowest) and verifies it. read, if not nil,
// is told the bytes of the blob as they are read.
func (img *OCIImage) LayerTree(ctx context.Context, i int, store Store, opts TarOptions, read func(n int)) (*mkdaxfs.Tree, []Warning, error) {
	fail := func(err error) (*mkdaxfs.Tree, []Warning, error) {
		return nil, nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(img.Layers), img.Layers[i].Digest, err)
	}
	b, err := openBlob(img.dir, img.Layers[i])
	if err != nil {
		return fail(err)
	}
	defer b.close()
	var r io.Reader = b
	if read != nil {
		r = &counter{b, read}
	}
	opts.Verified = true
	diffID := img.DiffIDs[i].Algorithm().Digester()
	tree, warnings, err := FromStream(ctx, r, diffID.Hash(), store, opts)
	if err != nil {
		// A wrong blob explains what is wrong with the archive in it.
		if ctx.Err() == nil && (errors.Is(err, ErrBadLayer) || errors.Is(err, ErrTruncated)) {
			if e := verifyBlob(img.dir, img.Layers[i]); e != nil {
				err = fmt.Errorf("%w; %w", e, err)
			}
		}
		return fail(err)
	}
	if err := b.verify(); err != nil {
		return fail(err)
	}
	if got, want := diffID.Digest(), img.DiffIDs[i]; got != want {
		return fail(fmt.Errorf("uncompressed digest (diffID) is %s, the config says %s: %w", got, want, ErrDigest))
	}
	return tree, warnings, nil
}

// Tree reads all layers and flattens them.
func (img *OCIImage) Tree(ctx context.Context, store Store, opts TarOptions, read func(n int)) (*mkdaxfs.Tree, []Warning, error) {
	var layers []*mkdaxfs.Tree
	var warnings []Warning
	for i := range img.Layers {
		t, w, err := img.LayerTree(ctx, i, store, opts, read)
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, t)
		warnings = append(warnings, w...)
	}
	if len(layers) == 0 {
		layers = []*mkdaxfs.Tree{{Root: implicitDir()}}
	}
	t, err := Merge(layers)
	return t, warnings, err
}

// counter tells how much was read.
type counter struct {
	r    io.Reader
	tell func(n int)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.tell(n)
	return n, err
}
