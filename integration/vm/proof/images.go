package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// buildRealImage writes the flattened debian image of the integration tests,
// with its EROFS view, to the file out.
func buildRealImage(ctx context.Context, out string) error {
	cache := images.Cache{Dir: ".cache/images"}
	layout, err := cache.Get(ctx, "debian")
	if err != nil {
		return err
	}
	return command(ctx, "go", "run", "./cmd/mkdaxfs", "--quiet", "--oci", layout.Dir, "-o", out)
}

// buildExt4 writes an ext4 with the same tree to the file out. Its unpacked
// tree lies in scratch meanwhile.
func buildExt4(ctx context.Context, image, scratch, out string) error {
	tree := filepath.Join(scratch, "tree")
	defer os.RemoveAll(tree)
	if err := command(ctx, "go", "run", "./cmd/daxfsctl", "image", "extract", image, "/", tree); err != nil {
		return err
	}
	st, err := os.Stat(image)
	if err != nil {
		return err
	}
	// Room for inode tables; what is not used stays a hole.
	size := st.Size() + st.Size()/2
	return command(ctx, "mkfs.ext4", "-q", "-d", tree, out, fmt.Sprint(size>>10, "k"))
}

// writeManifest writes what protocol.Prepare describes and returns the path and
// the pool address of a file to poke at: the largest one below /usr/share.
func writeManifest(image, out string) (poke string, address int64, err error) {
	f, err := os.Open(image)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	img, err := mkdaxfs.Open(f, st.Size())
	if err != nil {
		return "", 0, err
	}
	tree, err := img.Tree(0)
	if err != nil {
		return "", 0, err
	}
	var (
		list  []byte
		large int64
		seen  = make(map[*mkdaxfs.Node]bool) // hard links
	)
	err = tree.Walk(func(path string, n *mkdaxfs.Node) error {
		if !n.IsRegular() || seen[n] {
			return nil
		}
		seen[n] = true
		list = fmt.Appendf(list, "%d %d /%s\x00", n.Size, n.Extent.Offset, path)
		if ok, _ := filepath.Match("usr/share/*/*", path); ok && n.Size > large {
			poke, address, large = "/"+path, n.Extent.Offset, n.Size
		}
		return nil
	})
	if err != nil {
		return "", 0, err
	}
	return poke, address, os.WriteFile(out, list, 0o644)
}

// buildSpeedImage writes the image that "inside speed" measures on to the file
// out.
func buildSpeedImage(ctx context.Context, out string) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{})
	if err != nil {
		return err
	}
	defer b.Close()
	big, err := b.Put(ctx, io.LimitReader(newNoise(), protocol.BigFileSize), protocol.BigFileSize)
	if err != nil {
		return err
	}
	root := &mkdaxfs.Node{Mode: unix.S_IFDIR | 0o755}
	root.Set(protocol.BigFile, &mkdaxfs.Node{Mode: unix.S_IFREG | 0o644, Size: protocol.BigFileSize, Extent: big})
	for _, n := range protocol.DirSizes {
		d := &mkdaxfs.Node{Mode: unix.S_IFDIR | 0o755, Children: make([]mkdaxfs.Child, 0, n)}
		for i := range n {
			d.Children = append(d.Children, mkdaxfs.Child{
				Name: protocol.EntryName(i), Node: &mkdaxfs.Node{Mode: unix.S_IFREG | 0o644},
			})
		}
		root.Set(protocol.DirName(n), d)
	}
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	if _, err := b.Finish(ctx, tree); err != nil {
		return fmt.Errorf("build %s: %w", out, err)
	}
	return nil
}

// noise is an endless stream of bytes that no layer can compress or share.
type noise struct{ random *rand.Rand }

func newNoise() noise { return noise{rand.New(rand.NewPCG(1, 1))} }

func (n noise) Read(p []byte) (int, error) {
	p = p[:len(p)&^7]
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n.random.Uint64())
	}
	return len(p), nil
}

// newPool makes a pool with the image at its beginning. Only the image's own
// pages take memory.
func newPool(image string) (path string, closePool func() error, err error) {
	in, err := os.Open(image)
	if err != nil {
		return "", nil, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return "", nil, err
	}
	path, closePool, err = vm.NewPool((st.Size() + vm.PoolAlign - 1) / vm.PoolAlign * vm.PoolAlign)
	if err != nil {
		return "", nil, err
	}
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		defer out.Close()
		_, err = io.Copy(out, in)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("copy %s into a pool: %w", image, err), closePool())
	}
	return path, closePool, nil
}

// command runs a program and puts what it said into the error.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return nil
}
