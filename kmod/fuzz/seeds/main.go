// Seeds writes the sound images that fuzzing the parsing core starts from, and
// some mutations of each, into a directory.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/daxfs/containerd-daxfs/integration/vm/hostile/mutate"
)

const (
	// mutations is how many of all images together are written; more would slow
	// the fuzzer down before they help it.
	mutations = 200
	// sizeMax bounds the images: small ones have the same records.
	sizeMax = 32 << 10
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: seeds DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "seeds:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	images, err := mutate.Images()
	if err != nil {
		return err
	}
	images = slices.DeleteFunc(images, func(i mutate.Image) bool { return len(i.Bytes) > sizeMax })
	m, err := mutate.New(images)
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := os.WriteFile(filepath.Join(dir, i.Name), i.Bytes, 0o644); err != nil {
			return err
		}
	}
	for n := range uint64(mutations) {
		i := m.Mutate(0, n)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d", i.From, n)), i.Bytes, 0o644); err != nil {
			return err
		}
	}
	return nil
}
