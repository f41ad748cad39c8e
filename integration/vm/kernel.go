package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Kernel is one of Debian's kernels with what it takes to boot it and to build
// modules for it.
type Kernel struct {
	Name    string // version as people say it: "6.12"
	Release string // as uname -r says it: "6.12.95+deb12-amd64"
	Image   string // the kernel, an ELF file, a path
	Modules string // /lib/modules/RELEASE of this kernel, a path
	Root    string // chroot with headers, compiler and make

	sparse bool // the chroot's sparse understands the headers
}

// Kernels returns the kernels of the lab, oldest first. Those that are not in
// the cache are fetched; fetched ones are never looked up again, so that the
// versions stay until the cache is removed.
func Kernels(ctx context.Context) ([]Kernel, error) {
	var kernels []Kernel
	for _, s := range sources {
		root, err := s.fetch(ctx)
		if err != nil {
			return nil, fmt.Errorf("fetch the kernel of %s: %w", s.suite, err)
		}
		k, err := open(root)
		if err != nil {
			return nil, fmt.Errorf("open the kernel of %s: %w", s.suite, err)
		}
		k.sparse = s.sparse
		kernels = append(kernels, k)
	}
	return kernels, nil
}

// FindKernel returns the kernel of that name. Errors name those there are.
func FindKernel(ctx context.Context, name string) (Kernel, error) {
	kernels, err := Kernels(ctx)
	if err != nil {
		return Kernel{}, err
	}
	var names []string
	for _, k := range kernels {
		if k.Name == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	return Kernel{}, fmt.Errorf("no kernel %q, there are %s", name, strings.Join(names, ", "))
}

// open finds the one kernel in a chroot.
func open(root string) (Kernel, error) {
	dirs, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if err != nil {
		return Kernel{}, err
	}
	if len(dirs) != 1 {
		return Kernel{}, fmt.Errorf("%d kernels in %s, want 1", len(dirs), root)
	}
	k := Kernel{Root: root, Modules: dirs[0], Release: filepath.Base(dirs[0]), Image: filepath.Join(root, vmlinux)}
	parts := strings.SplitN(k.Release, ".", 3)
	if len(parts) < 3 {
		return Kernel{}, fmt.Errorf("kernel release %q is not X.Y.Z", k.Release)
	}
	k.Name = parts[0] + "." + parts[1]
	_, err = os.Stat(k.Image)
	return k, err
}
