// Package imageconvert turns OCI images in containerd's content store into ones
// whose only layer is a flattened DAXFS image, and back (docs/image-spec.md). It
// needs containerd's content store and nothing else: no daemon, no root, no
// mounts.
package imageconvert

import (
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Media types of a layer that is a DAXFS image. The prefix is the one by which
// containerd knows a layer (core/images, IsLayerType): layers of any other are
// not unpacked by its client, nor labelled for its garbage collection.
const (
	MediaTypeLayer     = "application/vnd.oci.image.layer.v1.daxfs"
	MediaTypeLayerZstd = MediaTypeLayer + "+zstd"
)

// OSFeature is the os.features value by which an image index tells the manifest
// with a DAXFS image from the ordinary one of the same platform.
const OSFeature = "daxfs"

// Annotations on a layer's descriptor. They let a reader refuse a layer before it
// reads it; the layer itself says the same.
const (
	AnnotationVersion    = "io.daxfs.version"     // of the format, as "0x00010000"
	AnnotationBlockSize  = "io.daxfs.block-size"  // in bytes
	AnnotationSize       = "io.daxfs.size"        // of the image in bytes, uncompressed
	AnnotationMetaDigest = "io.daxfs.meta-digest" // "blake3:" and 64 hexadecimal digits: names the tree
)

// annotations are those of an image with that superblock.
func annotations(sb *disk.Superblock) map[string]string {
	return map[string]string{
		AnnotationVersion:    fmt.Sprintf("%#08x", sb.Version),
		AnnotationBlockSize:  strconv.FormatUint(uint64(sb.BlockSize), 10),
		AnnotationSize:       strconv.FormatUint(sb.TotalSize, 10),
		AnnotationMetaDigest: fmt.Sprintf("blake3:%x", sb.MetaDigest),
	}
}

// IsLayer reports whether a media type is that of a DAXFS image.
func IsLayer(mediaType string) bool {
	return mediaType == MediaTypeLayer || mediaType == MediaTypeLayerZstd
}

// CheckAnnotations compares a layer's annotations with what this program reads,
// as far as they are there. NotImplemented: it is another format or page size.
// InvalidArgument: they make no sense.
func CheckAnnotations(d ocispec.Descriptor) error {
	for name, want := range map[string]uint64{AnnotationVersion: disk.VersionNative, AnnotationBlockSize: disk.BlockSize} {
		v, ok := d.Annotations[name]
		if !ok {
			continue
		}
		got, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			return fmt.Errorf("annotation %s is %q, want a number: %w", name, v, errdefs.ErrInvalidArgument)
		}
		if got != want {
			return fmt.Errorf("annotation %s is %s, want %#x: %w", name, v, want, disk.ErrUnsupported)
		}
	}
	_, err := imageSize(d)
	return err
}

// imageSize is what a layer's annotations say of the image's size in bytes, or 0.
func imageSize(d ocispec.Descriptor) (int64, error) {
	v, ok := d.Annotations[AnnotationSize]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < disk.BlockSize || n%disk.BlockSize != 0 {
		return 0, fmt.Errorf("annotation %s is %q, want a multiple of %d: %w", AnnotationSize, v, disk.BlockSize, errdefs.ErrInvalidArgument)
	}
	return n, nil
}
