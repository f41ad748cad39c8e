package fstree

import (
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"
)

// A Difference is one field of one path on which two trees disagree. Values are
// as a person reads them; a path that one tree lacks has Field "exists".
type Difference struct {
	Path  string
	Field string // exists type mode uid gid size mtime nlink rdev target sha256 xattr:NAME links
	A, B  string
}

func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: %s != %s", d.Path, d.Field, clip(d.A), clip(d.B))
}

// clip keeps 4000-byte symlinks from filling the test log.
func clip(s string) string {
	if len(s) <= 200 {
		return s
	}
	return fmt.Sprintf("%s…(%d bytes)", s[:180], len(s))
}

// Values of the field "exists".
const (
	Present = "yes"
	Absent  = "no"
	Ghost   = "in readdir only"
)

// Diff returns all differences between a and b, in byte order of the paths.
func Diff(a, b Tree) []Difference {
	union := map[string]bool{}
	for p := range a {
		union[p] = true
	}
	for p := range b {
		union[p] = true
	}
	paths := make([]string, 0, len(union))
	for p := range union {
		paths = append(paths, p)
	}
	sort.Strings(paths)

	var out []Difference
	for _, p := range paths {
		d := Difference{Path: p, Field: "exists", A: a.exists(p), B: b.exists(p)}
		if d.A == Present && d.B == Present {
			out = append(out, diffEntry(p, a[p], b[p])...)
		} else if d.A != d.B {
			out = append(out, d)
		}
	}
	return out
}

func (t Tree) exists(path string) string {
	e, ok := t[path]
	switch {
	case !ok:
		return Absent
	case e.Mode == 0:
		return Ghost
	}
	return Present
}

func diffEntry(path string, a, b Entry) []Difference {
	var out []Difference
	add := func(field, va, vb string) {
		if va != vb {
			out = append(out, Difference{path, field, va, vb})
		}
	}
	add("type", TypeName(a.Mode), TypeName(b.Mode))
	add("mode", fmt.Sprintf("%#o", a.Mode&0o7777), fmt.Sprintf("%#o", b.Mode&0o7777))
	add("uid", fmt.Sprint(a.UID), fmt.Sprint(b.UID))
	add("gid", fmt.Sprint(a.GID), fmt.Sprint(b.GID))
	add("size", fmt.Sprint(a.Size), fmt.Sprint(b.Size))
	add("mtime", a.Mtime(), b.Mtime())
	add("nlink", fmt.Sprint(a.Nlink), fmt.Sprint(b.Nlink))
	add("rdev", fmt.Sprintf("%#x", a.Rdev), fmt.Sprintf("%#x", b.Rdev))
	add("target", fmt.Sprintf("%q", a.Target), fmt.Sprintf("%q", b.Target))
	add("sha256", a.SHA256, b.SHA256)
	if !reflect.DeepEqual(a.Links, b.Links) {
		add("links", fmt.Sprintf("%q", a.Links), fmt.Sprintf("%q", b.Links))
	}
	names := map[string]bool{}
	for n := range a.Xattrs {
		names[n] = true
	}
	for n := range b.Xattrs {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		va, okA := a.Xattrs[n]
		vb, okB := b.Xattrs[n]
		sa, sb := fmt.Sprintf("%q", va), fmt.Sprintf("%q", vb)
		if !okA {
			sa = Absent
		}
		if !okB {
			sb = Absent
		}
		add("xattr:"+n, sa, sb)
	}
	return out
}

// Mtime is the modification time as seconds.nanoseconds since 1970.
func (e Entry) Mtime() string { return fmt.Sprintf("%d.%09d", e.MtimeSec, e.MtimeNsec) }

// SetMtime sets the modification time from t.
func (e *Entry) SetMtime(t time.Time) {
	e.MtimeSec, e.MtimeNsec = t.Unix(), int64(t.Nanosecond())
}

// TypeName names the file type in a st_mode value.
func TypeName(mode uint32) string {
	names := map[uint32]string{
		0o100000: "file", 0o040000: "directory", 0o120000: "symlink",
		0o020000: "char", 0o060000: "block", 0o010000: "fifo", 0o140000: "socket",
	}
	if n, ok := names[mode&0o170000]; ok {
		return n
	}
	return fmt.Sprintf("%#o", mode&0o170000)
}

// An Excuse names the documented exception that covers d, if one does.
type Excuse func(d Difference) (name string, excused bool)

// Excused splits differences into those that excuse covers, counted by the
// name of the exception, and the rest.
func Excused(diffs []Difference, excuse Excuse) (rest []Difference, counts map[string]int) {
	counts = map[string]int{}
	for _, d := range diffs {
		if name, ok := excuse(d); ok {
			counts[name]++
			continue
		}
		rest = append(rest, d)
	}
	return rest, counts
}

// Format writes at most max differences, one a line, and how many more there are.
func Format(diffs []Difference, max int) string {
	var b strings.Builder
	for i, d := range diffs {
		if i == max {
			fmt.Fprintf(&b, "  … and %d more\n", len(diffs)-max)
			break
		}
		fmt.Fprintf(&b, "  %v\n", d)
	}
	return b.String()
}
