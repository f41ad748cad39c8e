package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Whatever the bytes are, a dump ends, and its JSON is whole. The image is of
// the public format, which has no checksums; 8 bytes of it are changed, since
// Go's fuzzer is slow with large inputs.
func FuzzDump(f *testing.F) {
	path := filepath.Join(f.TempDir(), "s.img")
	if err := writeSample(path, true); err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), uint64(0), uint16(0), uint64(0))
	f.Add(uint16(56), uint64(1), uint16(4096+64), uint64(2))
	f.Fuzz(func(t *testing.T, off1 uint16, xor1 uint64, off2 uint16, xor2 uint64) {
		b := bytes.Clone(sound)
		for _, p := range []struct {
			off uint16
			xor uint64
		}{{off1, xor1}, {off2, xor2}} {
			at := b[int(p.off)%(len(b)-8):]
			binary.LittleEndian.PutUint64(at, binary.LittleEndian.Uint64(at)^p.xor)
		}
		img, err := mkdaxfs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Skip()
		}
		s := &source{Image: img, name: "fuzz"}
		bad := func(string, error) {}
		_ = s.dumpText(io.Discard, true, bad)
		var out bytes.Buffer
		if err := s.dumpJSON(&out, bad); err == nil && !json.Valid(out.Bytes()) {
			t.Errorf("invalid JSON:\n%s", out.Bytes())
		}
	})
}

// Directories that nest without end do not fill the memory with their paths.
func TestWalkDeep(t *testing.T) {
	deep := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	root := deep
	for range 1000 {
		next := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
		deep.Set(strings.Repeat("d", 200), next)
		deep = next
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "deep.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(b)
	if _, err := b.Finish(t.Context(), &mkdaxfs.Tree{Root: root}); err != nil {
		t.Fatal(err)
	}
	out, errOut, code := ctl("image", "dump", f.Name())
	if n := strings.Count(out, "\n"); code != 1 || n < 300 || n > 400 {
		t.Errorf("status %d, %d lines", code, n)
	}
	wants(t, errOut, "path of more than 65536 bytes")
}
