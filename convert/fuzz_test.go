package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// limited is a store that a small input cannot make large: a sparse file in an
// archive may claim any size.
type limited struct{ memStore }

var errTooLarge = errors.New("too large for the fuzzer")

func (s *limited) Put(ctx context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	if size > 1<<22 {
		return mkdaxfs.Extent{}, errTooLarge
	}
	return s.memStore.Put(ctx, r, size)
}

func fuzzSeeds(f *testing.F) {
	f.Add(archive(f, mkd("d"), reg("d/f", "content"), lnk("h", "d/f"), sym("s", "d"), reg("s/x", "y"), reg(".wh.gone", ""), reg("d/.wh..wh..opq", "")))
	f.Add(archive(f, reg(strings.Repeat("long/", 60)+"f", "x").xattr("user.k", "v").at(-5, 7), entry(tar.TypeChar, "c").dev(1, 3), entry(tar.TypeFifo, "p")))
	f.Add(archive(f, reg("/abs", ""), reg("../up", "")))
	f.Add(archive(f))
	f.Add([]byte{})
	f.Add(archive(f, reg("edge", strings.Repeat("x", 512)))[:1024])
}

// FuzzTar imports an archive as a layer. What is accepted must fit into a layer
// index, and, merged onto another layer, into an image.
func FuzzTar(f *testing.F) {
	fuzzSeeds(f)
	base := []ent{mkd("d"), reg("d/f", "low"), sym("lib", "usr/lib"), mkd("usr/lib"), sym("s", "s")}
	f.Fuzz(func(t *testing.T, b []byte) {
		importTar(t, b, base)
		importTar(t, mendTar(b), base)
	})
}

// mendTar makes the checksum of whatever looks like a header right.
func mendTar(b []byte) []byte {
	b = bytes.Clone(b)
	for h := b; len(h) >= 512; h = h[512:] {
		if string(h[257:262]) != "ustar" {
			continue
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h[:512] {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

func importTar(t *testing.T, b []byte, base []ent) {
	s := new(limited)
	tree, warnings, err := FromTar(context.Background(), bytes.NewReader(b), s, TarOptions{})
	if err != nil {
		if !errors.Is(err, ErrBadLayer) && !errors.Is(err, ErrTruncated) && !errors.Is(err, mkdaxfs.ErrInvalidTree) && !errors.Is(err, errTooLarge) {
			t.Errorf("error of an unknown kind: %v", err)
		}
		return
	}
	for _, w := range warnings {
		if w.Reason == "" {
			t.Errorf("warning without a reason: %+v", w)
		}
	}
	l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: true})
	if err != nil {
		t.Fatalf("archive was accepted, then: %v", err)
	}
	if _, err := l.LayerKey(); err != nil {
		t.Fatal(err)
	}
	mergeOnto(t, s, layerTree(t, s, base...), tree)
}

// mergeOnto flattens layers, which must either fail for a reason or give a
// sound image.
func mergeOnto(t *testing.T, s Store, layers ...*mkdaxfs.Tree) {
	merged, err := Merge(layers)
	if err != nil {
		if !errors.Is(err, ErrBadLayer) {
			t.Errorf("merge: %v", err)
		}
		return
	}
	checkTree(t, merged)
}

// FuzzLayers makes chains of layers from four bytes an entry: kind, path, link
// target, and where a layer ends. In contrast to archives that a fuzzer
// mutates, nearly all of these are accepted.
func FuzzLayers(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x02\x05\x00\x00\x01\x02\x11\x80\x02\x12\x00\x00\x04\x05\x00\x80\x03\x33\x05\x00"))
	f.Add([]byte("\x01\x01\x22\x80\x02\x11\x00\x00\x05\x01\x00\x80\x00\x01\x00\x00"))
	for seed := range 8 {
		b := make([]byte, 200)
		r := rand.New(rand.NewPCG(uint64(seed), 9))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	path := func(c byte) string {
		p := string(rune('a' + c&3))
		if c>>2&3 > 0 {
			p += "/" + string(rune('a'+c>>2&3-1))
		}
		if c>>4&3 > 0 {
			p += "/" + string(rune('a'+c>>4&3-1))
		}
		return p
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4000 {
			return
		}
		s := new(limited)
		var ents []ent
		var layers []*mkdaxfs.Tree
		end := func() bool {
			tree, _, err := FromTar(context.Background(), bytes.NewReader(archive(t, ents...)), s, TarOptions{})
			ents = nil
			if err != nil {
				if !errors.Is(err, ErrBadLayer) {
					t.Errorf("error of an unknown kind: %v", err)
				}
				return false
			}
			layers = append(layers, tree)
			return true
		}
		for ; len(b) >= 4; b = b[4:] {
			p, target := path(b[1]), []string{"", "/", "../", "./"}[b[2]>>6]+path(b[2])
			switch b[0] & 7 {
			case 0:
				ents = append(ents, mkd(p).mode(int64(b[0])))
			case 1:
				ents = append(ents, sym(p, target))
			case 2, 3:
				ents = append(ents, reg(p, fmt.Sprint(b[2])))
			case 4:
				ents = append(ents, reg(filepath.Join(filepath.Dir(p), ".wh."+filepath.Base(p)), ""))
			case 5:
				ents = append(ents, reg(p+"/.wh..wh..opq", ""))
			case 6:
				ents = append(ents, lnk(p, path(b[2])))
			case 7:
				ents = append(ents, entry(tar.TypeChar, p))
			}
			if b[3]&0x80 != 0 && !end() {
				return
			}
		}
		if !end() {
			return
		}
		mergeOnto(t, s, layers...)
	})
}

// FuzzStream adds decompression.
func FuzzStream(f *testing.F) {
	fuzzSeeds(f)
	f.Add(gz(f, archive(f, reg("f", "x"))))
	f.Add([]byte("\x28\xb5\x2f\xfd\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, _, err := FromStream(context.Background(), bytes.NewReader(b), digest.Canonical.Hash(), new(limited), TarOptions{Verified: true})
		if err == nil {
			checkTree(t, tree)
		}
	})
}
