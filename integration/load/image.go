package load

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// Image is what a pull would bring, and what must come out.
type Image struct {
	Name   string
	Layers []*Layer          // lowest first
	Files  map[string]string // path in the image -> SHA-256 of what it holds
	Gone   []string          // paths that a layer has removed
}

// Layer is one of an image's layers.
type Layer struct {
	Tar     []byte
	ChainID string
}

// Program is the path of the program in every image.
const Program = "bin/prog"

// Images makes test images around a program: always the same ones, so that
// kernels that make them apart have the same chainIDs. Each has a layer that
// others have too, and files that others have too in layers of its own.
func Images(program []byte) ([]*Image, error) {
	rnd := rand.New(rand.NewPCG(4, 4))
	var shared [][]byte
	for range 12 {
		shared = append(shared, content(rnd))
	}
	var bases []*tree
	for i := range 2 {
		t := &tree{files: map[string][]byte{Program: program}}
		for j := range 6 {
			t.files[fmt.Sprintf("base/%d", j)] = content(rnd)
		}
		t.files["etc/base"] = fmt.Appendf(nil, "base %d", i)
		bases = append(bases, t)
	}
	var all []*Image
	for i := range 6 {
		middle := &tree{files: map[string][]byte{"etc/base": fmt.Appendf(nil, "replaced by image %d", i)}, gone: []string{"base/0"}}
		top := &tree{files: map[string][]byte{"base/1": content(rnd)}}
		for j := range 4 + i {
			middle.files[fmt.Sprintf("middle/%d", j)] = shared[rnd.IntN(len(shared))]
			top.files[fmt.Sprintf("top/%d", j)] = content(rnd)
		}
		img, err := makeImage(fmt.Sprint("image", i), bases[i%2], middle, top)
		if err != nil {
			return nil, err
		}
		all = append(all, img)
	}
	return all, nil
}

// content is a file's: of a few bytes, or of many blocks, some of them zeros.
func content(rnd *rand.Rand) []byte {
	b := make([]byte, 1+rnd.IntN(200_000))
	if rnd.IntN(3) == 0 {
		b = b[:1+rnd.IntN(100)%len(b)]
	}
	for i := range b {
		if (i>>14)%4 != 3 {
			b[i] = byte(rnd.Uint32())
		}
	}
	return b
}

// tree is what a layer says.
type tree struct {
	files map[string][]byte
	gone  []string
}

func makeImage(name string, layers ...*tree) (*Image, error) {
	img := &Image{Name: name, Files: map[string]string{}}
	var diffs []digest.Digest
	for _, l := range layers {
		b, err := l.tar()
		if err != nil {
			return nil, fmt.Errorf("make image %s: %w", name, err)
		}
		diffs = append(diffs, digest.FromBytes(b))
		img.Layers = append(img.Layers, &Layer{Tar: b, ChainID: identity.ChainID(diffs).String()})
		for path, c := range l.files {
			img.Files[path] = fmt.Sprintf("%x", sha256.Sum256(c))
		}
		for _, path := range l.gone {
			delete(img.Files, path)
			img.Gone = append(img.Gone, path)
		}
	}
	return img, nil
}

// Top is the chainID of all layers.
func (i *Image) Top() string { return i.Layers[len(i.Layers)-1].ChainID }

var made = time.Date(2026, 1, 1, 0, 0, 0, 123456789, time.UTC)

func (t *tree) tar() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(path string, mode int64, c []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(c)), ModTime: made, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(c)
		return err
	}
	for _, dir := range []string{"base/", "bin/", "etc/", "middle/", "top/"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: made, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	for _, path := range sorted(maps.Keys(t.files)) {
		if err := put(path, 0o755, t.files[path]); err != nil {
			return nil, err
		}
	}
	for _, path := range t.gone {
		dir, name := split(path)
		if err := put(dir+".wh."+name, 0, nil); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
