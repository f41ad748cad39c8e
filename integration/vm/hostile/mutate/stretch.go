package mutate

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Stretch makes an image reach over the room bytes from its superblock on, as
// those of a pool do. It leaves alone what is no superblock, or says something
// else than the length of image.
func Stretch(image []byte, room uint64) {
	le := binary.LittleEndian
	sb, err := disk.DecodeSuperblock(image)
	if err != nil || sb.TotalSize != uint64(len(image)) || sb.BaseOffset != disk.BlockSize || sb.BaseSize != sb.TotalSize-disk.BlockSize {
		return
	}
	le.PutUint64(image[16:], room)
	le.PutUint64(image[32:], room-disk.BlockSize)
	if sb.Native() {
		le.PutUint32(image[disk.SuperblockCRC:], disk.SuperblockChecksum(image))
	}
}

// Scatter makes some files of an image lie anywhere in the room bytes from its
// superblock on.
func Scatter(r *rand.Rand, image []byte, room uint64) {
	sb, err := disk.DecodeSuperblock(image)
	if err != nil || sb.BaseOffset != disk.BlockSize || !disk.Inside(sb.InodeOffset, uint64(sb.InodeCount)*disk.InodeSize, uint64(len(image)-disk.BlockSize)) {
		return
	}
	for i := range sb.InodeCount {
		raw := image[sb.BaseOffset+sb.InodeOffset+uint64(i)*disk.InodeSize:]
		in := disk.DecodeInode(raw)
		if in.Mode&disk.TypeMask != disk.TypeRegular || r.IntN(4) != 0 {
			continue
		}
		in.DataOffset = r.Uint64N(room/disk.BlockSize-1) * disk.BlockSize
		in.Size = 1 + r.Uint64N(1<<r.IntN(24))
		if r.IntN(4) == 0 {
			in.Size = room - disk.BlockSize - in.DataOffset // to the last byte
		}
		in.Encode(raw)
	}
}
