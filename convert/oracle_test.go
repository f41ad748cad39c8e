package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	ctdarchive "github.com/containerd/containerd/v2/pkg/archive"
	ctdfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// asTree is what stat(2) and its friends would say about tree.
func asTree(t testing.TB, s *memStore, tree *mkdaxfs.Tree) fstree.Tree {
	t.Helper()
	out := fstree.Tree{}
	ids := make(map[string]any)
	links := make(map[*mkdaxfs.Node]uint64)
	if err := tree.Walk(func(_ string, n *mkdaxfs.Node) error { links[n]++; return nil }); err != nil {
		t.Fatal(err)
	}
	_ = tree.Walk(func(p string, n *mkdaxfs.Node) error {
		e := fstree.Entry{Mode: n.Mode, UID: n.UID, GID: n.GID, MtimeSec: n.Mtime, MtimeNsec: int64(n.MtimeNsec), Xattrs: map[string]string{}}
		for _, x := range n.Xattrs {
			e.Xattrs[x.Name] = x.Value
		}
		if !n.IsDir() {
			e.Nlink = links[n]
			ids[p] = n
		}
		switch {
		case n.IsRegular():
			e.Size = n.Size
			sum := sha256.Sum256(s.content(n))
			e.SHA256 = hex.EncodeToString(sum[:])
		case n.IsSymlink():
			e.Target, e.Size = n.Link, int64(len(n.Link))
		case disk.HasRdev(n.Mode):
			major, minor := disk.DecodeDev(n.Rdev)
			e.Rdev = unix.Mkdev(major, minor)
		}
		out[p] = e
		return nil
	})
	out.SetLinks(ids)
	return out
}

// randomPath is one to three names of four.
func randomPath(r *rand.Rand) string {
	p := ""
	for range 1 + r.IntN(3) {
		p = filepath.Join(p, string(rune('a'+r.IntN(4))))
	}
	return p
}

func randomTarget(r *rand.Rand) string {
	return []string{"", "/", "../", "./", "../../"}[r.IntN(5)] + randomPath(r)
}

// randomLayer makes a layer as tools that write tars do: parents before
// children, no path twice, whiteouts before what is made again. Parents often
// have no entry.
//
// files are those that layers made so far, for hard links.
func randomLayer(r *rand.Rand, files *[]string) []ent {
	lowest := len(*files) == 0
	stamp := func(e ent) ent {
		return e.at(int64(1+r.IntN(1e6)), int64(r.IntN(1e9))).own(r.IntN(3), r.IntN(3)).mode([]int64{0o644, 0o755, 0o4711, 0o1777}[r.IntN(4)])
	}
	kinds := map[string]int{} // 0 directory, 1 symlink, 2 file, 3 hard link
	for range 3 + r.IntN(12) {
		p := randomPath(r)
		kinds[p] = []int{0, 0, 1, 2, 2, 2, 3}[r.IntN(7)]
		if !strings.Contains(p, "/") && kinds[p] >= 2 && r.IntN(4) > 0 {
			kinds[p] = 0 // files at the top are in the way of most others
		}
	}
	// Below what is no directory there is nothing, below a symlink files only.
	for p, k := range kinds {
		for up := filepath.Dir(p); up != "."; up = filepath.Dir(up) {
			if uk, ok := kinds[up]; ok && (uk >= 2 || uk == 1 && k < 2) {
				delete(kinds, p)
			}
		}
	}
	// Whiteouts come before what is made again under their name, and behind the
	// entries of the directories they are in.
	var first, inDirs []ent
	has := func(up bool, p string) bool {
		for q := range kinds {
			if !up && strings.HasPrefix(q, p+"/") || up && strings.HasPrefix(p, q+"/") {
				return true
			}
		}
		return false
	}
	if !lowest {
		for range r.IntN(4) {
			p := randomPath(r)
			e := reg(filepath.Join(filepath.Dir(p), ".wh."+filepath.Base(p)), "")
			if k, ok := kinds[filepath.Dir(p)]; ok && k > 0 {
				continue
			}
			if _, ok := kinds[p]; !has(true, p) {
				first = append(first, e)
			} else if !ok && !has(false, p) {
				inDirs = append(inDirs, e)
			}
		}
		for p, k := range kinds {
			if k == 0 && r.IntN(8) == 0 && !has(false, p) {
				inDirs = append(inDirs, reg(filepath.Join(p, opaqueMarker), ""))
			}
		}
	}
	byName := func(a, b ent) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(first, byName)
	slices.SortFunc(inDirs, byName)
	ents := first
	paths := make([]string, 0, len(kinds))
	for p := range kinds {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for kind := range 4 {
		if kind == 1 {
			ents = append(ents, inDirs...)
		}
		for _, p := range paths {
			if kinds[p] != kind {
				continue
			}
			var e ent
			switch kind {
			case 0:
				e = mkd(p)
			case 1:
				e = sym(p, randomTarget(r))
			case 2:
				*files = append(*files, p)
				e = reg(p, fmt.Sprint(r.IntN(1000)))
				if r.IntN(4) == 0 {
					e = e.xattr("user.k", fmt.Sprint(r.IntN(100)))
				}
			case 3:
				if len(*files) == 0 {
					continue
				}
				e = lnk(p, (*files)[r.IntN(len(*files))])
			}
			ents = append(ents, stamp(e))
		}
	}
	return ents
}

// TestMergeAgainstContainerd extracts random layers one over the other with
// containerd's own code, and compares every file with the flattened tree.
//
// Left out is what extraction cannot say: times of directories (any change in
// them sets the time of unpacking), and the root (containerd ignores entries for
// it).
func TestMergeAgainstContainerd(t *testing.T) {
	testutil.Root(t)
	rounds := 600
	if testing.Short() {
		rounds = 100
	}
	applied, links, grafts := 0, 0, 0
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		var layers [][]ent
		var files []string
		for range 2 + r.IntN(3) {
			layers = append(layers, randomLayer(r, &files))
		}
		root := t.TempDir()
		var failed error
		for _, l := range layers {
			if ambiguous(root, l) || redirects(root, l) {
				failed = errors.New("a name twice")
				break
			}
			if _, err := ctdarchive.Apply(context.Background(), root, bytes.NewReader(archive(t, l...))); err != nil {
				failed = err
				break
			}
			if ambiguous(root, l) { // now with the symlinks of the layer itself
				failed = errors.New("a name twice")
				break
			}
		}
		if failed != nil {
			// A file as parent, a link to what is gone: nothing to compare.
			os.RemoveAll(root)
			continue
		}
		s := new(memStore)
		var trees []*mkdaxfs.Tree
		for _, l := range layers {
			trees = append(trees, layerTree(t, s, l...))
		}
		tree, err := Merge(trees)
		if err != nil {
			t.Fatalf("seed %d: %v, containerd takes the layers:\n%s", seed, err, showLayers(layers))
		}
		want, err := fstree.Walk(root, fstree.Options{})
		if err != nil {
			t.Fatal(err)
		}
		diffs, _ := fstree.Excused(fstree.Diff(want, asTree(t, s, tree)), func(d fstree.Difference) (string, bool) {
			return "not compared", d.Path == "." || d.Field == "mtime" && want[d.Path].IsDir()
		})
		if len(diffs) > 0 {
			t.Fatalf("seed %d: containerd's extraction and the flattened tree differ:\n%s\nlayers:\n%s", seed, fstree.Format(diffs, 20), showLayers(layers))
		}
		checkTree(t, tree)
		applied++
		for _, e := range want {
			if len(e.Links) > 0 {
				links++
			}
		}
		for i, tr := range trees {
			m := merger{layers: slices.Clone(trees[:i+1])}
			if i > 0 && hasImplicit(tr.Root) {
				grafts += len(m.findMoves(i))
			}
		}
		os.RemoveAll(root)
	}
	t.Logf("%d of %d chains compared, %d hard-linked names, %d directories moved below symlinks", applied, rounds, links, grafts)
	if applied < rounds/10 || links == 0 || grafts == 0 {
		t.Errorf("too little was compared")
	}
}

// ambiguous reports whether a layer has one file by two paths, because of
// symlinks in root: then the last entry wins, and a layer tree, which does not
// know what is below, does not know the order.
func ambiguous(root string, ents []ent) bool {
	seen := make(map[string]bool)
	for _, e := range ents {
		dir, err := ctdfs.RootPath(root, filepath.Dir(e.Name))
		if err != nil {
			return true
		}
		p := filepath.Join(dir, filepath.Base(e.Name))
		if seen[p] {
			return true
		}
		seen[p] = true
	}
	return false
}

// redirects reports whether a layer replaces something by a symlink, so that
// where other symlinks lead depends on the order of its entries.
func redirects(root string, ents []ent) bool {
	for _, e := range ents {
		if e.Typeflag == tar.TypeSymlink {
			dir, err := ctdfs.RootPath(root, filepath.Dir(e.Name))
			if err != nil {
				return true
			}
			if _, err := os.Lstat(filepath.Join(dir, filepath.Base(e.Name))); err == nil {
				return true
			}
		}
	}
	return false
}

func showLayers(layers [][]ent) string {
	var b strings.Builder
	for i, l := range layers {
		fmt.Fprintf(&b, "layer %d:\n", i)
		for _, e := range l {
			fmt.Fprintf(&b, "  %c %s", e.Typeflag, e.Name)
			if e.Linkname != "" {
				fmt.Fprintf(&b, " -> %s", e.Linkname)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
