package mkdaxfs

import "strings"

// PrefetchStats says what became of a list of hot files.
type PrefetchStats struct {
	Listed   int   `json:"listed"`    // paths of the list
	Files    int   `json:"files"`     // whose data is laid first
	Bytes    int64 `json:"bytes"`     // of those files
	Offset   int64 `json:"offset"`    // in the image: where their data begins
	End      int64 `json:"end"`       // and ends, at a block
	Missing  int   `json:"missing"`   // paths that the image does not have
	NotFiles int   `json:"not_files"` // directories, devices and so on
	Empty    int   `json:"empty"`     // files without data
	Repeated int   `json:"repeated"`  // other names and paths of files that the list has already
	// FirstMissing is the first path that counts in Missing, relative to the
	// image's root.
	FirstMissing string `json:"first_missing,omitempty"`
}

// Prefetch returns the files with data that a list (see ReadPrefetch) names,
// in its order and each once, and counts the rest. Symlinks are followed as
// they are for a process whose root the tree is. Offset and End are the
// caller's to fill in.
func (t *Tree) Prefetch(paths []string) ([]*Node, *PrefetchStats) {
	st := &PrefetchStats{Listed: len(paths)}
	var hot []*Node
	seen := make(map[*Node]struct{})
	for _, p := range paths {
		n := t.follow(p)
		_, again := seen[n]
		switch {
		case n == nil:
			if st.Missing++; st.Missing == 1 {
				st.FirstMissing = p
			}
		case !n.IsRegular():
			st.NotFiles++
		case n.Size == 0:
			st.Empty++
		case again:
			st.Repeated++
		default:
			seen[n] = struct{}{}
			hot = append(hot, n)
			st.Files++
			st.Bytes += n.Size
		}
	}
	return hot, st
}

// follow returns the node that a path leads to through symlinks, or nil.
func (t *Tree) follow(path string) *Node {
	at := []*Node{t.Root} // the directories down to where it has come
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		n := at[len(at)-1].Lookup(name)
		if n == nil {
			return nil
		}
		if !n.IsSymlink() {
			at = append(at, n)
			continue
		}
		if links++; links > maxLinks {
			return nil
		}
		if strings.HasPrefix(n.Link, "/") {
			at = at[:1]
		}
		rest = append(strings.Split(n.Link, "/"), rest...)
	}
	return at[len(at)-1]
}
