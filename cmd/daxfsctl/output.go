package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// judgement is a result that people and programs can read.
type judgement interface{ print(w io.Writer) error }

// judge prints a result as the command line asks for it, and ends with errBad if
// it is not good.
func judge(c *cli.Context, res judgement, good bool) (err error) {
	if c.Bool("json") {
		err = printJSON(c.App.Writer, res)
	} else {
		err = res.print(c.App.Writer)
	}
	if err == nil && !good {
		err = errBad
	}
	return err
}

// escape writes bytes as text that has them all: a backslash as \\, and what
// is no printable character of UTF-8 as \xHH, byte for byte. It is used for
// names, targets and values of xattrs, in text and in JSON.
func escape(s string) string {
	return escapeIf(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// escapeField is escape for fields of lines that are split at spaces: all but
// the visible characters of ASCII is \xHH, and so is each byte of also.
func escapeField(s, also string) string {
	return escapeIf(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(also, r) })
}

func escapeIf(s string, bad func(rune) bool) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1 || r != '\\' && bad(r):
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		case r == '\\':
			b.WriteString(`\\`)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// table aligns columns that are separated by tabs. The last column must not
// end with one.
func table(w io.Writer, fill func(w io.Writer)) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fill(t)
	return t.Flush()
}

// size writes bytes for people, exactly where that is short.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n), -1
	for v >= 1024 && u < len(units)-1 {
		v /= 1024
		u++
	}
	if v >= 100 {
		return fmt.Sprintf("%.0f %ciB", v, units[u])
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// mtime is a modification time to the nanosecond.
func mtime(sec int64, nsec uint32) string {
	return time.Unix(sec, int64(nsec)).UTC().Format("2006-01-02T15:04:05.000000000Z")
}
