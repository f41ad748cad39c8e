package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// buildImage makes an image of files with the given contents.
func buildImage(t *testing.T, opts mkdaxfs.BuildOptions, contents ...string) Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	for i, c := range contents {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: int64(len(c))}
		if n.Extent, err = b.Put(t.Context(), strings.NewReader(c), n.Size); err != nil {
			t.Fatal(err)
		}
		root.Set(fmt.Sprint("f", i), n)
		root.Set(fmt.Sprint("link", i), n) // a second name is no second inode
	}
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	stats, err := b.Finish(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return Source{File(path), 0, stats.Size}
}

func TestSelfContained(t *testing.T) {
	contents := []string{"one", "same", "same", "", ""}
	if err := SelfContained(buildImage(t, mkdaxfs.BuildOptions{}, contents...)); err != nil {
		t.Errorf("a self-contained image: %v", err)
	}
	for name, c := range map[string]struct {
		opts mkdaxfs.BuildOptions
		want string
	}{
		"shared files":    {mkdaxfs.BuildOptions{Share: true}, "share their bytes at 8192"},
		"no EROFS view":   {mkdaxfs.BuildOptions{NoErofs: true}, "no EROFS view"},
		"v8":              {mkdaxfs.BuildOptions{V8: true}, "no EROFS view"},
		"nothing to read": {},
	} {
		src := Source{Region: fake{kind: "pmem"}, Size: 8192}
		if c.want != "" {
			src = buildImage(t, c.opts, contents...)
		}
		err := SelfContained(src)
		if err == nil || errors.Is(err, ErrUnsuitable) != (c.want != "") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An image of a pool draws from layers, even if it does not share anything yet.
	n := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	l, err := mkdaxfs.NewLayout(&mkdaxfs.Tree{Root: n}, mkdaxfs.Options{Layers: [][32]byte{{1}}})
	if err != nil {
		t.Fatal(err)
	}
	super, meta, err := l.Emit(mkdaxfs.Place{Meta: disk.BlockSize, End: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pool")
	if err := os.WriteFile(path, bytes.Join([][]byte{super, meta, make([]byte, 1<<20-len(super)-len(meta))}, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SelfContained(Source{File(path), 0, 1 << 20}); !errors.Is(err, ErrUnsuitable) || !strings.Contains(err.Error(), "with others of its pool") {
		t.Errorf("an image of a pool: %v", err)
	}
}
