package mkdaxfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

const (
	// maxPrefetchLine has room for a path of PATH_MAX bytes, each of them
	// escaped.
	maxPrefetchLine = 16 << 10
	// maxPrefetchPaths bounds the memory that a list takes.
	maxPrefetchPaths = 1 << 20
)

// ErrInvalidPrefetch is wrapped by errors about lists that ReadPrefetch cannot
// take. They name the line.
var ErrInvalidPrefetch = fmt.Errorf("invalid prefetch list: %w", errdefs.ErrInvalidArgument)

// ReadPrefetch reads a list of hot files, as BuildOptions.Prefetch wants it: in
// the order of the list, relative to the image's root, clean, and with no file
// named twice by the same path.
//
// A line is a path in the image; the slash in front may be missing. Spaces
// around it, empty lines and those that begin with # do not count. A line that
// begins with a quotation mark is a string of the Go language ("a\nb", "\xff"),
// for all other names. A path with "..", a NUL or nothing but the root in it, a
// line of more than 16 KiB and more than 1,048,576 paths are errors that wrap
// ErrInvalidPrefetch.
func ReadPrefetch(r io.Reader) ([]string, error) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxPrefetchLine)
	var paths []string
	seen := make(map[string]struct{})
	n := 1
	for ; s.Scan(); n++ {
		line := strings.Trim(s.Text(), " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		p, err := prefetchPath(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n, err, ErrInvalidPrefetch)
		}
		if _, ok := seen[p]; ok {
			continue
		}
		if len(paths) == maxPrefetchPaths {
			return nil, fmt.Errorf("line %d: more than %d paths: %w", n, maxPrefetchPaths, ErrInvalidPrefetch)
		}
		seen[p] = struct{}{}
		paths = append(paths, p)
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d: more than %d bytes: %w", n, maxPrefetchLine, ErrInvalidPrefetch)
	} else if err != nil {
		return nil, fmt.Errorf("read prefetch list: %w", err)
	}
	return paths, nil
}

// ReadPrefetchFile is ReadPrefetch for the list in a file, which its errors name.
func ReadPrefetchFile(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	paths, err := ReadPrefetch(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return paths, nil
}

// prefetchPath is the path that a line names, clean and relative to the root.
func prefetchPath(line string) (string, error) {
	p := line
	if line[0] == '"' {
		var err error
		if p, err = strconv.Unquote(line); err != nil {
			return "", fmt.Errorf("%.64q is not a quoted string", line)
		}
	}
	switch clean := strings.TrimPrefix(path.Clean("/"+p), "/"); {
	case strings.IndexByte(p, 0) >= 0:
		return "", fmt.Errorf("%.64q has a NUL", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		// What it means depends on symlinks.
		return "", fmt.Errorf(`%.64q has a ".."`, p)
	case clean == "":
		return "", fmt.Errorf("%.64q names no file", p)
	default:
		return clean, nil
	}
}

// WritePrefetch writes paths, relative to the image's root or absolute, as
// ReadPrefetch reads them.
func WritePrefetch(w io.Writer, paths []string) error {
	b := bufio.NewWriter(w)
	for _, p := range paths {
		p = "/" + strings.TrimPrefix(p, "/")
		if !plainPath(p) {
			p = strconv.Quote(p)
		}
		// Its error is that of Flush.
		_, _ = b.WriteString(p + "\n")
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write prefetch list: %w", err)
	}
	return nil
}

// plainPath reports whether a path is a line of a list as it is.
func plainPath(p string) bool {
	return utf8.ValidString(p) && p == strings.Trim(p, " \t") &&
		strings.IndexFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
