package integration

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// Where containerd's overlayfs snapshotter shows something else than the OCI
// layer specification asks for. Everything else must be the same.
//
// What containerd's applier loses before any snapshotter sees it is the same on
// both sides and is listed at ocitree.Options.Walking.
const (
	// The snapshot directory's own time: containerd's applier leaves the tar
	// entry of the root out. Ours: the fixed time.
	rootTime = "root-time"
	// A directory without entry in a layer that has something below it gets the
	// time of unpacking. Ours: the lower layer's time, else the fixed one.
	impliedTime = "implied-directory-time"
	// The same, unpacked in parallel: the applier does not see the lower layers
	// and makes the directory 0755 root:root. Ours: the lower layer's
	// attributes, as in sequential unpacking.
	impliedAttributes = "implied-directory-attributes"
	// st_nlink counts names that an upper layer removed or replaced. Ours: the
	// names there are.
	removedLinks = "removed-link-count"
	// A whiteout in a directory that overlayfs does not merge with a lower one is
	// a name that readdir lists and nothing finds. Ours: no such name.
	listedWhiteout = "listed-whiteout"
	// An entry's path that leads through a symlink of a lower layer: a directory
	// takes the symlink's place. Ours: the entry is where the symlink points.
	followedSymlink = "followed-symlink"
	// An opaque marker in the root directory is not honoured.
	opaqueRoot = "opaque-root"
)

// departure excuses what overlayfs shows (A) against the specification (B).
func departure(notes *ocitree.Notes, parallel bool) fstree.Excuse {
	return func(d fstree.Difference) (string, bool) {
		switch {
		case d.Path == "." && d.Field == "mtime":
			return rootTime, true
		case d.Field == "mtime" && notes.Implied[d.Path]:
			return impliedTime, true
		case parallel && notes.Implied[d.Path] &&
			(d.Field == "mode" || d.Field == "uid" || d.Field == "gid" || strings.HasPrefix(d.Field, "xattr:")):
			return impliedAttributes, true
		case d.Field == "nlink" && notes.Unlinked[d.Path]:
			return removedLinks, true
		case d.Field == "exists" && d.A == fstree.Ghost && d.B == fstree.Absent:
			return listedWhiteout, true
		case d.Field == "exists" && d.A == fstree.Present && d.B == fstree.Absent && notes.RootOpaque:
			return opaqueRoot, true
		}
		for link, dir := range notes.Followed {
			there := strings.HasPrefix(d.Path, link+"/") && d.A == fstree.Present
			here := strings.HasPrefix(d.Path, dir+"/") && d.B == fstree.Present
			if d.Path == link || d.Field == "exists" && (there || here) {
				return followedSymlink, true
			}
		}
		return "", false
	}
}

// unpackModes are the ways in which containerd puts layers on top of each other.
var unpackModes = []struct {
	name string
	lab.Config
}{
	{"sequential", lab.Config{}},
	{"parallel", lab.Config{Rebase: true, Parallel: 4}},
	{"walking-sequential", lab.Config{Walking: true}},
	{"walking-parallel", lab.Config{Walking: true, Rebase: true, Parallel: 4}},
}

var treeImages = []string{"nasty", "rootopaque", "debian", "python"}

// Every image shows, by every way of pulling it, exactly what the specification
// asks for, and so what overlayfs shows but for the departures above.
func TestSameTreeAsOverlayfs(t *testing.T) {
	for _, mode := range unpackModes {
		t.Run(mode.name, func(t *testing.T) {
			l := lab.New(t, mode.Config)
			seen, ran := map[string]int{}, 0
			for _, name := range treeImages {
				t.Run(name, func(t *testing.T) {
					sameTree(t, l, name, seen)
					ran++
				})
			}
			if t.Failed() || ran < len(treeImages) {
				return
			}
			// An excuse that nothing needs is a hole in the comparison.
			want := []string{rootTime, impliedTime, removedLinks, listedWhiteout, followedSymlink, opaqueRoot}
			if mode.Parallel > 1 {
				want = append(want, impliedAttributes)
			}
			for _, name := range want {
				if seen[name] == 0 {
					t.Errorf("no image shows the departure %s", name)
				}
			}
		})
	}
}

func sameTree(t *testing.T, l *lab.Lab, name string, seen map[string]int) {
	l = l.For(t)
	walked, notes := l.Expected(name, ocitree.Options{Walking: true})
	want := walked
	if !l.Walking {
		want, _ = l.Expected(name, ocitree.Options{})
	}
	excuse := departure(notes, l.Parallel > 1)

	ref := l.Namespace("overlayfs")
	overlay := l.ViewTree(ref, l.MustPull(ref, name, lab.Overlayfs, lab.PullUnpack), lab.Overlayfs)

	// The specification and overlayfs judge each other first: where they
	// disagree without a name, one of the two is wrong, and no verdict on our
	// snapshotter would be worth anything.
	rest, counts := fstree.Excused(fstree.Diff(overlay, walked), excuse)
	if len(rest) > 0 {
		t.Fatalf("overlayfs and the specification disagree in %d unexplained ways:\n%s", len(rest), fstree.Format(rest, 20))
	}
	t.Logf("%d paths; overlayfs departs from the specification: %s", len(want), list(counts))
	for k, n := range counts {
		seen[k] += n
	}

	for _, method := range lab.Methods {
		t.Run(string(method), func(t *testing.T) {
			l := l.For(t)
			ctx := l.Namespace(string(method))
			img := l.MustPull(ctx, name, lab.Daxfs, method)
			got := l.ViewTree(ctx, img, lab.Daxfs)
			diffs := fstree.Diff(want, got)
			if lab.Standin() {
				diffs, _ = fstree.Excused(fstree.Diff(got, want), excuse)
			}
			if len(diffs) > 0 {
				t.Errorf("%d differences, wanted != got:\n%s", len(diffs), fstree.Format(diffs, 40))
			}
			if rest, _ := fstree.Excused(fstree.Diff(overlay, got), excuse); len(rest) > 0 && l.Walking { // else the specification has judged
				t.Errorf("%d unexplained differences, overlayfs != ours:\n%s", len(rest), fstree.Format(rest, 40))
			}
			if _, err := l.Run(ctx, img, lab.Daxfs, "true"); err != nil {
				t.Errorf("run true: %v", err)
			}
			if name == "python" {
				// Byte code goes stale when mtimes change, libraries are mapped.
				if out, err := l.Run(ctx, img, lab.Daxfs, "python3", "/srv/app/main.py"); err != nil || out != "346\n" {
					t.Errorf("run python: %v %q", err, out)
				}
			}
			// The next method must unpack anew.
			l.RemoveImage(ctx, name)
			if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
				t.Errorf("snapshots left after the image was removed: %q", left)
			}
		})
	}
	l.RemoveImage(ref, name)
}

func list(counts map[string]int) string {
	var parts []string
	for k, n := range counts {
		parts = append(parts, fmt.Sprintf("%s %d", k, n))
	}
	if len(parts) == 0 {
		return "nowhere"
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}
