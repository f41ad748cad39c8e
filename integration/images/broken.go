package images

import (
	"fmt"
	"os"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Damage is a way in which an image's last layer can be wrong.
type Damage string

const (
	// Truncated: the compressed layer ends in the middle, and its digest is
	// that of what there is.
	Truncated Damage = "truncated"
	// WrongDiffID: the configuration names another layer content.
	WrongDiffID Damage = "wrong diffID"
	// WrongDigest: a byte of the blob is not what its digest says.
	WrongDigest Damage = "wrong digest"
)

// Damages is all of them.
var Damages = []Damage{Truncated, WrongDiffID, WrongDigest}

// Break writes an image to dir that is like another one but for its last layer.
func Break(from *Layout, dir string, how Damage) (*Layout, error) {
	layers, err := from.Layers()
	if err != nil {
		return nil, err
	}
	l, err := newLayout(dir)
	if err != nil {
		return nil, err
	}
	last := &layers[len(layers)-1]
	if err := l.share(from, layers[:len(layers)-1]); err != nil {
		return nil, err
	}
	blob, err := os.ReadFile(from.BlobPath(last.Digest))
	if err != nil {
		return nil, err
	}
	switch how {
	case Truncated:
		blob = blob[:len(blob)/2]
		last.Digest, last.Size = digest.FromBytes(blob), int64(len(blob))
	case WrongDiffID:
		last.DiffID = digest.FromString("another layer")
	case WrongDigest:
		blob[len(blob)/2] ^= 1
	default:
		return nil, fmt.Errorf("no damage %q", how)
	}
	if err := os.WriteFile(l.BlobPath(last.Digest), blob, 0o644); err != nil {
		return nil, err
	}
	return l, l.finish(layers, []string{"true"}, nil)
}

// Plain writes an image to dir whose layers are those of another one, if that is
// not nil, and on top of them a blob that is not compressed.
func Plain(from *Layout, dir, mediaType string, blob []byte) (*Layout, error) {
	l, err := newLayout(dir)
	if err != nil {
		return nil, err
	}
	var layers []Layer
	if from != nil {
		if layers, err = from.Layers(); err != nil {
			return nil, err
		}
		if err := l.share(from, layers); err != nil {
			return nil, err
		}
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := os.WriteFile(l.BlobPath(d.Digest), blob, 0o644); err != nil {
		return nil, err
	}
	return l, l.finish(append(layers, Layer{d, d.Digest}), []string{"true"}, nil)
}
