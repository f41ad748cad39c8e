package inside

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// writeImage puts an image into a region as mkdaxfs makes it: two files, "a"
// and "b", of one content, which share its bytes if share says so.
func writeImage(t *testing.T, region interface {
	engine.Region
	io.WriterAt
}, content string, share bool, at int64) engine.Source {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	must(t, err)
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{Share: share})
	must(t, err)
	defer b.Close()
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	for _, name := range []string{"a", "b"} {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: int64(len(content))}
		n.Extent, err = b.Put(bg, strings.NewReader(content), n.Size)
		must(t, err)
		root.Set(name, n)
	}
	stats, err := b.Finish(bg, &mkdaxfs.Tree{Root: root})
	must(t, err)
	image := make([]byte, stats.Size)
	_, err = f.ReadAt(image, 0)
	must(t, err)
	_, err = region.WriteAt(image, at)
	must(t, err)
	return engine.Source{Region: region, Offset: at, Size: stats.Size}
}
