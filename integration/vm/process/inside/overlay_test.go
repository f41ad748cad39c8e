package inside

import (
	"bytes"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"golang.org/x/sys/unix"
)

// over mounts an overlay above the native image.
func over(t *testing.T, dir, more string) (lower, merged *mounted) {
	t.Helper()
	lower = native(t)
	merged = &mounted{view: lower.view, base: lower.base, Manifest: lower.Manifest}
	merged.root = mountOverlay(t, lower.root, dir, more)
	return lower, merged
}

// TestOverlayCopyUp: what is written goes to the upper directory with all that
// the file is, and the image stays.
func TestOverlayCopyUp(t *testing.T) {
	for _, upper := range []string{"tmpfs", "ext4"} {
		t.Run(upper, func(t *testing.T) {
			dir := scratch(t)
			if upper == "ext4" {
				dir = ext4(t, 64<<20)
			}
			lower, m := over(t, dir, "")
			const rel = "data/65537"
			seen := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
			seen.touch()

			f, err := os.OpenFile(m.path(rel), os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			if _, err := f.WriteAt([]byte("written"), 4090); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 65537)
			Fill(want, rel, 0)
			copy(want[4090:], "written")
			got, err := os.ReadFile(m.path(rel))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Error("the file is not what it was with what was written")
			}
			// A mapping from before shows the lower file, as it always does.
			wantFill(t, "mapping from before", seen.b, rel, 0)
			lower.wantUnchanged(t, rel)

			after := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
			if !bytes.Equal(after.b, want) {
				t.Error("a mapping from afterwards is not what was written")
			}

			// Attributes go along.
			must(t, os.Chmod(m.path("xattr/large"), 0o600))
			if v, err := getxattr(m.path("xattr/large"), "user.large"); upper == "ext4" && (len(v) != 3000 || err != nil) {
				t.Errorf("user attribute after chmod: %d bytes, %v, want 3000", len(v), err)
			}
			must(t, os.Chmod(m.path("bin/caps"), 0o700))
			if v, err := getxattr(m.path("bin/caps"), "security.capability"); len(v) != 20 || err != nil {
				t.Errorf("capabilities after chmod: %d bytes, %v, want 20", len(v), err)
			}
			var before, st unix.Stat_t
			must(t, unix.Lstat(lower.path("times/last-ns"), &before))
			must(t, os.Chmod(m.path("times/last-ns"), 0o600))
			must(t, unix.Lstat(m.path("times/last-ns"), &st))
			if st.Mtim != before.Mtim {
				t.Errorf("mtime after chmod: %v, want %v", st.Mtim, before.Mtim)
			}
			cut := FillName(2 << 20)
			must(t, os.Truncate(m.path(cut), 10))
			b, err := os.ReadFile(m.path(cut))
			must(t, err)
			if len(b) != 10 {
				t.Errorf("%d bytes after truncation to 10", len(b))
			}
			wantFill(t, "truncated", b, cut, 0)
		})
	}
}

// TestOverlayRemovals: whiteouts, opaque directories and renames hide what the
// image has.
func TestOverlayRemovals(t *testing.T) {
	onViews(t, "overlay", func(t *testing.T, m *mounted) {
		must(t, os.Remove(m.path("data/1")))
		must(t, os.RemoveAll(m.path("acl")))
		must(t, os.Mkdir(m.path("acl"), 0o755))
		must(t, os.WriteFile(m.path("acl/new"), nil, 0o644))
		must(t, os.Rename(m.path("data/4097"), m.path("empty/moved")))
		must(t, os.Link(m.path("types/file"), m.path("empty/linked")))
		must(t, os.Remove(m.path("symlinks/dir")))
		must(t, os.Mkdir(m.path("symlinks/dir"), 0o755))
		for rel, want := range map[string][]string{
			"acl":          {"new"},
			"empty":        {"linked", "moved"},
			"symlinks/dir": nil,
		} {
			got := namesIn(t, m.path(rel))
			if !equal(got, want) {
				t.Errorf("%s has %q, want %q", rel, got, want)
			}
		}
		for _, rel := range []string{"data/1", "data/4097", "acl/user"} {
			if _, err := os.Lstat(m.path(rel)); !os.IsNotExist(err) {
				t.Errorf("%s: %v, want it to be gone", rel, err)
			}
		}
		b, err := os.ReadFile(m.path("empty/moved"))
		must(t, err)
		wantFill(t, "moved", b, "data/4097", 0)
		if n := len(namesIn(t, m.path("many"))); n != ManyNames {
			t.Errorf("many has %d names, want %d", n, ManyNames)
		}
		must(t, os.Remove(m.path("many/"+ManyName(5))))
		if n := len(namesIn(t, m.path("many"))); n != ManyNames-1 {
			t.Errorf("many has %d names after one was removed, want %d", n, ManyNames-1)
		}
		for _, rel := range []string{"data/1", "acl/user", "types/file"} {
			if _, err := os.Lstat(filepath.Join(m.base, rel)); err != nil {
				t.Errorf("in the image: %v", err)
			}
		}
	})
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	f := open(t, dir)
	names, err := f.Readdirnames(-1)
	must(t, err)
	sort.Strings(names)
	return names
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestOverlayOptions: the features that ask the lower file system for more than
// names and bytes.
func TestOverlayOptions(t *testing.T) {
	for _, c := range []struct {
		options string
		user    bool // attributes of users are kept above
	}{
		{"userxattr", true},
		{"index=on", false},
		{"index=on,nfs_export=on", false},
		{"xino=on", false},
		{"metacopy=on,redirect_dir=on", false},
		{"volatile", false},
	} {
		t.Run(c.options, func(t *testing.T) {
			_, m := over(t, ext4(t, 64<<20), c.options)
			for name, want := range m.Tree["xattr/file"].Xattrs {
				if got, err := getxattr(m.path("xattr/file"), name); got != want || err != nil {
					t.Errorf("%s: %q, %v, want %q", name, got, err, want)
				}
			}
			// Hard links stay one file with an index, and break without.
			must(t, os.WriteFile(m.path("links/a"), []byte("changed"), 0o644))
			b, err := os.ReadFile(m.path("links/sub/c"))
			must(t, err)
			indexed := bytes.HasPrefix([]byte(c.options), []byte("index=on"))
			if (string(b) == "changed") != indexed {
				t.Errorf("another name of a changed file has %q", b)
			}
			must(t, os.Chmod(m.path("data/65537"), 0o600))
			b, err = os.ReadFile(m.path("data/65537"))
			must(t, err)
			wantFill(t, "after chmod", b, "data/65537", 0)
			if c.user {
				if v, err := getxattr(m.path("xattr/file"), "user.note"); v != "of a user" || err != nil {
					t.Errorf("user.note: %q, %v", v, err)
				}
				must(t, os.Chmod(m.path("xattr/file"), 0o600))
				if v, err := getxattr(m.path("xattr/file"), "user.note"); v != "of a user" || err != nil {
					t.Errorf("user.note after chmod: %q, %v", v, err)
				}
			}
			if c.options == "index=on,nfs_export=on" {
				h := handleOf(t, m.path("data/8193"))
				dropCaches(t)
				f, err := openHandle(t, m.root, h, unix.O_RDONLY)
				must(t, err)
				b := make([]byte, 8193)
				if n, err := f.Read(b); n != 8193 {
					t.Errorf("read by a handle of the overlay: %d, %v", n, err)
				}
				f.Close()
			}
		})
	}
}

// TestOverlayOfTwo: two images as the layers of one overlay.
func TestOverlayOfTwo(t *testing.T) {
	daxfsOnly(t)
	data, all := mountDaxfs(t, ImageTwin, ""), findView(t, "pool").mount(t)
	dir := mountAt(t, "overlay", "overlay", unix.MS_RDONLY, "lowerdir="+data+":"+all.root)
	b, err := os.ReadFile(filepath.Join(dir, "8193"))
	must(t, err)
	wantFill(t, "of the upper image", b, "data/8193", 0)
	b, err = os.ReadFile(filepath.Join(dir, "data/8193"))
	must(t, err)
	wantFill(t, "of the lower image", b, "data/8193", 0)
	for _, path := range []string{"8193", "data/8193"} {
		mem := mapPath(t, filepath.Join(dir, path), unix.PROT_READ, unix.MAP_SHARED)
		mem.touch()
		all.wantFrames(t, "data/8193", 0, mem.frames(t))
	}
}

// TestOverlayKeepsImage: an image stays while an overlay needs it.
func TestOverlayKeepsImage(t *testing.T) {
	daxfsOnly(t)
	lower, m := over(t, scratch(t), "")
	must(t, unix.Unmount(lower.root, 0)) // the overlay has its own
	if n := len(entries(t)); n != 1 {
		t.Errorf("%d images in /sys/fs/daxfs under an overlay, want 1", n)
	}
	b, err := os.ReadFile(m.path("data/65537"))
	must(t, err)
	wantFill(t, "through the overlay", b, "data/65537", 0)
	must(t, unix.Unmount(m.root, 0))
	if e := entries(t); len(e) != 0 {
		t.Errorf("images in /sys/fs/daxfs after the overlay: %q, want none", e)
	}
	wantRegions(t, 0)
}
