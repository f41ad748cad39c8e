package fstree

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// build makes a small tree with one of each kind that needs no privilege.
func build(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(root, 0o755))
	must(os.Mkdir(root+"/dir", 0o750))
	must(os.WriteFile(root+"/dir/file", []byte("hello"), 0o640))
	must(os.Link(root+"/dir/file", root+"/link"))
	must(os.WriteFile(root+"/copy", []byte("hello"), 0o640))
	must(os.Symlink("dir/file", root+"/sym"))
	must(unix.Mkfifo(root+"/fifo", 0o600))
	must(os.WriteFile(root+"/\xff\xfe bad utf-8\n", nil, 0o600))
	must(unix.Setxattr(root+"/copy", "user.note", []byte("a\x00b"), 0))
	must(filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		ts := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 1700000000, Nsec: 123456789}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return root
}

func walk(t *testing.T, root string) Tree {
	t.Helper()
	tree, err := Walk(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestWalkRecordsEverything(t *testing.T) {
	tree := walk(t, build(t))
	want := []string{".", "copy", "dir", "dir/file", "fifo", "link", "sym", "\xff\xfe bad utf-8\n"}
	if got := tree.Paths(); !reflect.DeepEqual(got, want) {
		t.Fatalf("paths %q, want %q", got, want)
	}
	f := tree["dir/file"]
	if f.Mode != unix.S_IFREG|0o640 || f.Size != 5 || f.Nlink != 2 || f.Mtime() != "1700000000.123456789" ||
		f.SHA256 != "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" {
		t.Errorf("dir/file: %+v", f)
	}
	if !reflect.DeepEqual(f.Links, []string{"dir/file", "link"}) || !reflect.DeepEqual(f.Links, tree["link"].Links) {
		t.Errorf("hard link not seen: %q", f.Links)
	}
	if tree["copy"].Links != nil || tree["copy"].Xattrs["user.note"] != "a\x00b" {
		t.Errorf("copy: %+v", tree["copy"])
	}
	if tree["sym"].Target != "dir/file" || tree["fifo"].Type() != unix.S_IFIFO {
		t.Errorf("sym %+v, fifo %+v", tree["sym"], tree["fifo"])
	}
	if tree["."].Nlink != 0 || tree["."].Size != 0 {
		t.Errorf("directory has nlink or size: %+v", tree["."])
	}
}

// Every single change must be found, and nothing else reported with it.
func TestDiffFindsEachField(t *testing.T) {
	base := build(t)
	a := walk(t, base)
	if d := Diff(a, walk(t, base)); len(d) != 0 {
		t.Fatalf("a tree differs from itself: %v", d)
	}
	at := func(path string, change func(*Entry)) func(Tree) {
		return func(tree Tree) {
			e := tree[path]
			change(&e)
			tree[path] = e
		}
	}
	cases := []struct {
		field  string
		change func(Tree)
	}{
		{"exists", func(tree Tree) { delete(tree, "fifo") }},
		{"exists", func(tree Tree) { tree["new"] = Entry{Mode: unix.S_IFREG} }},
		{"exists", func(tree Tree) { tree["ghost"] = Entry{} }},
		{"type", at("fifo", func(e *Entry) { e.Mode = unix.S_IFSOCK | e.Mode&0o7777 })},
		{"mode", at("copy", func(e *Entry) { e.Mode |= unix.S_ISUID })},
		{"uid", at("copy", func(e *Entry) { e.UID++ })},
		{"gid", at("copy", func(e *Entry) { e.GID++ })},
		{"size", at("copy", func(e *Entry) { e.Size++ })},
		{"mtime", at("copy", func(e *Entry) { e.MtimeNsec++ })},
		{"mtime", at("copy", func(e *Entry) { e.SetMtime(time.Unix(-1, 5)) })},
		{"nlink", at("copy", func(e *Entry) { e.Nlink++ })},
		{"rdev", at("copy", func(e *Entry) { e.Rdev++ })},
		{"target", at("sym", func(e *Entry) { e.Target += "x" })},
		{"sha256", at("copy", func(e *Entry) { e.SHA256 = "" })},
		{"links", at("link", func(e *Entry) { e.Links = nil })},
		{"xattr:user.note", at("copy", func(e *Entry) { e.Xattrs = nil })},
		{"xattr:user.note", at("copy", func(e *Entry) { e.Xattrs = map[string]string{"user.note": ""} })},
		{"xattr:user.b", at("copy", func(e *Entry) { e.Xattrs = map[string]string{"user.note": "a\x00b", "user.b": ""} })},
	}
	for _, c := range cases {
		b := walk(t, base)
		c.change(b)
		for _, d := range [][]Difference{Diff(a, b), Diff(b, a)} {
			if len(d) != 1 || d[0].Field != c.field {
				t.Errorf("want one difference in %s, got %v", c.field, d)
			}
		}
	}
}

func TestExcused(t *testing.T) {
	diffs := []Difference{{Path: "a", Field: "mtime"}, {Path: "a", Field: "mode"}, {Path: "b", Field: "mtime"}}
	rest, counts := Excused(diffs, func(d Difference) (string, bool) { return "implied", d.Field == "mtime" })
	if len(rest) != 1 || rest[0].Field != "mode" || counts["implied"] != 2 || len(counts) != 1 {
		t.Errorf("rest %v, counts %v", rest, counts)
	}
	if s := Format(diffs, 1); !strings.Contains(s, "2 more") {
		t.Errorf("Format: %q", s)
	}
}
