package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// vmlinux is where a chroot holds the kernel in the form that is booted.
const vmlinux = "boot/vmlinux"

// extractKernel unpacks the kernel in a chroot from its self-extracting image.
// QEMU starts an ELF file directly (PVH), where an emulated CPU would spend as
// long on unpacking as on the rest of the boot.
func extractKernel(ctx context.Context, root string) error {
	// Debian moved the image in 2026.
	var images []string
	for _, pattern := range []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		images = append(images, found...)
	}
	if len(images) != 1 {
		return fmt.Errorf("%d kernel images in %s, want 1", len(images), root)
	}
	image, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	packed, err := payload(image)
	if err != nil {
		return fmt.Errorf("%s: %w", images[0], err)
	}
	var elf []byte
	switch {
	case bytes.HasPrefix(packed, []byte("\x28\xb5\x2f\xfd")):
		d, err := zstd.NewReader(nil)
		if err != nil {
			return err
		}
		defer d.Close()
		if elf, err = d.DecodeAll(packed, nil); err != nil {
			return fmt.Errorf("%s: %w", images[0], err)
		}
	case bytes.HasPrefix(packed, []byte("\xfd7zXZ\x00")):
		cmd := chroot(ctx, root, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(packed)
		if elf, err = cmd.Output(); err != nil {
			return fmt.Errorf("%s: unpack: %w", images[0], err)
		}
	default:
		return fmt.Errorf("%s: packed in a way that begins with % x", images[0], packed[:min(6, len(packed))])
	}
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		return fmt.Errorf("%s: unpacks to no ELF file of %d bytes", images[0], len(elf))
	}
	return os.WriteFile(filepath.Join(root, vmlinux), elf, 0o644)
}

// payload returns the compressed kernel in an image. Fields are those of the
// setup header in Documentation/arch/x86/boot.rst; four bytes after the
// compressed data hold its length unpacked.
func payload(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1 // length of the real-mode code, in 512 bytes, without the first
		magic         = 0x202
		payloadOffset = 0x248 // from the end of the real-mode code, 32 bits
		payloadLength = 0x24c // 32 bits
		headerEnd     = 0x250
	)
	if len(image) < headerEnd || string(image[magic:magic+4]) != "HdrS" {
		return nil, fmt.Errorf("no kernel image in %d bytes", len(image))
	}
	start := (int64(image[setupSects])+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start+length > int64(len(image)) || length < 4 {
		return nil, fmt.Errorf("payload [%d,+%d) outside an image of %d bytes", start, length, len(image))
	}
	return image[start : start+length-4], nil
}
