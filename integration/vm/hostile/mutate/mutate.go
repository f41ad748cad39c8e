package mutate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Mutator changes sound images.
type Mutator struct {
	images  []Image
	records []*records
}

// New returns a Mutator of sound images.
func New(images []Image) (*Mutator, error) {
	m := &Mutator{images: images}
	for _, i := range images {
		r, err := findRecords(i.Bytes)
		if err != nil {
			return nil, fmt.Errorf("find records of image %s: %w", i.Name, err)
		}
		m.records = append(m.records, r)
	}
	return m, nil
}

// Mutated is a changed image.
type Mutated struct {
	From    string // Image.Name
	Bytes   []byte
	Changes []string // what was done
}

// Mutate returns image n of the series that seed begins.
func (m *Mutator) Mutate(seed, n uint64) Mutated {
	r := rand.New(rand.NewPCG(seed, n))
	i := int(n % uint64(len(m.images)))
	c := &change{Rand: r, records: m.records[i], b: bytes.Clone(m.images[i].Bytes)}
	for range 1 + r.IntN(4) {
		c.one()
	}
	// Most readers would stop at a wrong checksum.
	if c.native && r.IntN(8) != 0 {
		binary.LittleEndian.PutUint32(c.b[disk.SuperblockCRC:], disk.SuperblockChecksum(c.b))
		c.note("checksum mended")
	}
	return Mutated{From: m.images[i].Name, Bytes: c.b, Changes: c.notes}
}

// Disturb makes one random change to b, an image that was image i of the
// Mutator: for images that readers use meanwhile. The checksum is mended.
func (m *Mutator) Disturb(r *rand.Rand, i int, b []byte) {
	c := &change{Rand: r, records: m.records[i], b: b}
	c.one()
	if c.native {
		binary.LittleEndian.PutUint32(b[disk.SuperblockCRC:], disk.SuperblockChecksum(b))
	}
}

// change is a sequence of changes to the image b.
type change struct {
	*rand.Rand
	*records
	b     []byte
	notes []string
}

func (c *change) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

func (c *change) one() {
	// Fields at the edges are the most of it.
	kinds := []func(*change){
		(*change).flip, (*change).bytes,
		(*change).superblock, (*change).edge, (*change).edge, (*change).edge, (*change).edge,
		(*change).swapFields, (*change).copyField, (*change).swapInodes, (*change).swapNames,
		(*change).retarget, (*change).retype, (*change).shareData, (*change).rename,
	}
	// A kind may find nothing to change: an empty directory has no names.
	for before := len(c.notes); len(c.notes) == before; {
		pick(c, kinds)(c)
	}
}

func (c *change) load(f field) uint64 {
	var v [8]byte
	copy(v[:], c.b[f.at:][:f.width])
	return binary.LittleEndian.Uint64(v[:])
}

func (c *change) store(f field, v uint64) {
	c.note("%s: %#x to %#x", f.name, c.load(f), v)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(c.b[f.at:][:f.width], b[:])
}

func pick[T any](c *change, from []T) T { return from[c.IntN(len(from))] }

func (c *change) field() field { return pick(c, c.fields[pick(c, c.kinds)]) }

// flip flips up to eight bits of an area.
func (c *change) flip() {
	a := pick(c, c.areas)
	for range 1 + c.IntN(8) {
		at := a.at + c.IntN(a.size)
		c.b[at] ^= 1 << c.IntN(8)
		c.note("%s: bit flipped in byte %d", a.name, at)
	}
}

// bytes overwrites up to a block of an area.
func (c *change) bytes() {
	a := pick(c, c.areas)
	n := 1 + c.IntN(min(a.size, 1<<c.IntN(13)))
	at := a.at + c.IntN(a.size-n+1)
	to := c.b[at:][:n]
	switch c.IntN(4) {
	case 0:
		clear(to)
	case 1:
		for i := range to {
			to[i] = 0xff
		}
	case 2:
		for i := range to {
			to[i] = byte(c.Uint32())
		}
	case 3: // from elsewhere in the image
		from := c.IntN(len(c.b) - n + 1)
		copy(to, bytes.Clone(c.b[from:][:n]))
	}
	c.note("%s: [%d,+%d) overwritten", a.name, at, n)
}

// superblock sets one of its fields to an edge.
func (c *change) superblock() {
	f := pick(c, c.super)
	c.store(f, c.edgeOf(f))
}

// edge sets a field of another record to an edge.
func (c *change) edge() {
	f := c.field()
	c.store(f, c.edgeOf(f))
}

// edgeOf returns a value near something that f may be compared with.
func (c *change) edgeOf(f field) uint64 {
	v := c.load(f)
	size := uint64(len(c.b))
	near := []uint64{
		0, v, size, size - disk.BlockSize, size - v, uint64(len(c.inodes)),
		disk.BlockSize, disk.MaxNameLen, disk.MaxLinkLen, disk.DirentV8Count, disk.DirentV8Stride,
		1 << 31, 1 << 32, 1 << 62, 1 << 63, // 2^64 is 0 - 1
		v + disk.BlockSize, v - disk.BlockSize, v * 2, v + 1<<32, v + 1<<63,
		1 << c.IntN(64),
		c.load(c.field()),
	}
	// A number of records that just fits, or just not.
	for _, unit := range []uint64{disk.DirentSize, disk.InodeSize, disk.DirentV8Stride} {
		near = append(near, size/unit)
	}
	return pick(c, near) + uint64(c.IntN(3)) - 1
}

// swapFields swaps two fields of a kind.
func (c *change) swapFields() {
	kind := c.fields[pick(c, c.kinds)]
	f, g := pick(c, kind), pick(c, kind)
	v := c.load(f)
	c.store(f, c.load(g))
	c.store(g, v)
}

// copyField gives a field the value of any other, of its kind or not.
func (c *change) copyField() {
	f, g := c.field(), c.field()
	if c.IntN(2) == 0 {
		f = pick(c, c.super)
	}
	c.store(f, c.load(g))
}

func (c *change) swap(what string, a, b, n int) {
	t := bytes.Clone(c.b[a:][:n])
	copy(c.b[a:][:n], c.b[b:][:n])
	copy(c.b[b:][:n], t)
	c.note("%s: [%d,+%d) and [%d,+%d) swapped", what, a, n, b, n)
}

// swapInodes swaps two records, with or without their numbers.
func (c *change) swapInodes() {
	a, b := pick(c, c.inodes), pick(c, c.inodes)
	number := 4 * c.IntN(2)
	c.swap("inodes", a.at+number, b.at+number, disk.InodeSize-number)
}

// directory returns one that has names, if there is any.
func (c *change) directory() (inode, bool) {
	if len(c.directories) == 0 {
		return inode{}, false
	}
	return c.inodes[pick(c, c.directories)], true
}

// swapNames swaps the records of two names, of one directory or of two.
func (c *change) swapNames() {
	d, ok := c.directory()
	if !ok {
		return
	}
	e := d
	if c.IntN(2) == 0 {
		e, _ = c.directory()
	}
	c.swap("names", pick(c, d.entries), pick(c, e.entries), c.direntSize())
}

// setName makes the record of a name lead to ino with a mode.
func (c *change) setName(entry int, ino, mode uint32) {
	le := binary.LittleEndian
	le.PutUint32(c.b[entry:], ino)
	if c.native {
		c.b[entry+10] = byte(mode >> 12)
	} else {
		le.PutUint32(c.b[entry+4:], mode)
	}
	c.note("name at %d leads to inode %d with mode %#o", entry, ino, mode)
}

// retarget makes a name lead to another inode, with the right type: to a
// directory, this gives it two names, or a loop.
func (c *change) retarget() {
	d, ok := c.directory()
	if !ok {
		return
	}
	to := pick(c, c.inodes)
	if c.IntN(2) == 0 {
		to, _ = c.directory()
	}
	c.setName(pick(c, d.entries), to.Ino, to.Mode)
}

// retype changes the type of an inode, and of its name: file data, link
// targets and directories become each other.
func (c *change) retype() {
	d, ok := c.directory()
	if !ok {
		return
	}
	entry := pick(c, d.entries)
	ino := binary.LittleEndian.Uint32(c.b[entry:])
	if ino == 0 || int(ino) > len(c.inodes) {
		return // by an earlier change
	}
	in := c.inodes[ino-1]
	mode := in.Mode&0o7777 | uint32(c.IntN(16))<<12
	c.setName(entry, ino, mode)
	c.store(field{"inode.mode", in.at + 4, 4}, uint64(mode))
}

// shareData gives an inode the bytes of another: directories with the same
// names, links to programs.
func (c *change) shareData() {
	a, b := pick(c, c.inodes), pick(c, c.inodes)
	copy(c.b[a.at+16:][:16], c.b[b.at+16:][:16])
	c.note("inode %d: data of inode %d", a.Ino, b.Ino)
}

// rename changes bytes of a name: out of order, twice, or none at all.
func (c *change) rename() {
	d, ok := c.directory()
	if !ok {
		return
	}
	n := pick(c, d.names)
	name := c.b[n.at:][:n.size]
	switch c.IntN(4) {
	case 0:
		name[c.IntN(len(name))] = pick(c, []byte{0, '/', '.', 0xff})
	case 1:
		copy(name, "..")
	case 2:
		other := pick(c, d.names)
		copy(name, bytes.Clone(c.b[other.at:][:other.size]))
	case 3:
		name[0] ^= byte(1 + c.IntN(255))
	}
	c.note("name at %d: is %.40q", n.at, name)
}
