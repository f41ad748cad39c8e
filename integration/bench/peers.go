package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// peer is a snapshotter as it is measured.
type peer struct {
	name, snapshotter string
	file              bool     // our pool is a file on the disk, not memory
	parallel          bool     // unpacks several layers at once if containerd may
	only              []string // images that it is measured with, to save time; nil: all
}

// peers are in the order of the tables; the first is what the others are
// compared with.
var peers = []peer{
	{name: "overlayfs", snapshotter: lab.Overlayfs, parallel: true},
	{name: "erofs", snapshotter: lab.Erofs, parallel: true},
	{name: "stargz", snapshotter: lab.Stargz, only: []string{"bench-debian", "bench-npm"}},
	{name: "daxfs-file", snapshotter: lab.Daxfs, file: true, parallel: true, only: []string{"bench-debian", "bench-python"}},
	{name: "daxfs", snapshotter: lab.Daxfs, parallel: true},
}

// Names in the samples.
const (
	reference = "overlayfs"
	ours      = "daxfs"
)

func peerNames() []string {
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
	}
	return names
}

func peersNamed(names ...string) []peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p peer) bool { return !slices.Contains(names, p.name) })
}

// mode is how many layers containerd unpacks at once.
type mode struct {
	name    string
	unpacks int
}

var modes = []mode{{"sequential", 1}, {"4 unpacks", 4}}

// findPeers builds or fetches what the chosen peers need. A peer that is not to
// be had is left out, and its reason is returned: the report names it.
func findPeers(ctx context.Context, chosen []string) (p lab.Peers, missing map[string]string) {
	missing = map[string]string{}
	find := func(name string, to *string, how func(context.Context) (string, error)) {
		if !slices.Contains(chosen, name) {
			return
		}
		got, err := how(ctx)
		if err != nil {
			missing[name] = strings.ReplaceAll(err.Error(), "\n", "; ")
			return
		}
		*to = got
	}
	find(lab.Erofs, &p.MkfsErofs, mkfsErofs)
	find(lab.Stargz, &p.Stargz, buildStargz)
	return p, missing
}

// buildStargz builds the stargz snapshotter, a Go module of its own.
func buildStargz(ctx context.Context) (string, error) {
	out := filepath.Join(lab.CacheDir(), "bin", "stargz")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, ".")
	cmd.Dir = filepath.Join(lab.RepoRoot(), "integration/bench/stargz")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build it: %w: %s", err, b)
	}
	return out, nil
}

// erofsUtils is the Debian release whose mkfs.erofs is taken: containerd's
// differ needs one that reads tar streams (1.7) and is advised to have one that
// need not sort them (1.8.2); bookworm has 1.5.
const erofsUtils = "trixie"

// mkfsErofs returns a directory with an mkfs.erofs that runs with the libraries
// of its own release, which it fetches once.
func mkfsErofs(ctx context.Context) (string, error) {
	dir := filepath.Join(lab.CacheDir(), "erofs-utils-"+erofsUtils)
	bin := filepath.Join(dir, "wrapper")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	mirror, err := vm.DebianMirror(ctx)
	if err != nil {
		return "", err
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--include=erofs-utils",
		erofsUtils, tmp, mirror)
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch erofs-utils of %s: %w: %s", erofsUtils, err, b)
	}
	libs := filepath.Join(dir, "usr/lib/x86_64-linux-gnu")
	script := fmt.Sprintf("#!/bin/sh\nexec '%s/ld-linux-x86-64.so.2' --library-path '%s' '%s/usr/bin/mkfs.erofs' \"$@\"\n", libs, libs, dir)
	if err := os.Mkdir(filepath.Join(tmp, "wrapper"), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tmp, "wrapper/mkfs.erofs"), []byte(script), 0o755); err != nil {
		return "", err
	}
	return bin, os.Rename(tmp, dir)
}
