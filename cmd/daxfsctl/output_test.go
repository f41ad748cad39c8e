package main

import (
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// unescape is what docs/operating.md says readers have to do.
func unescape(t *testing.T, s string) string {
	t.Helper()
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			b.WriteByte(s[i])
		case s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case s[i+1] == 'x':
			b.WriteByte(byte(strings.IndexByte(hex, s[i+2])<<4 | strings.IndexByte(hex, s[i+3])))
			i += 3
		default:
			t.Fatalf("%q: a backslash before %q", s, s[i+1])
		}
	}
	return b.String()
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", "with space", "caf\u00e9", "\xff\xfe\x00", `back\slash\x41`, "line\nbreak\ttab", "\ufffd", "\u200b\u202e", "=", "\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(t, escape(s)); got != s {
			t.Errorf("%q: escaped %q is %q", s, escape(s), got)
		}
		e := escapeField(s, "=")
		if got := unescape(t, e); got != s {
			t.Errorf("%q: escaped %q is %q", s, e, got)
		}
		for _, c := range []byte(e) {
			if c <= ' ' || c > '~' || c == '=' {
				t.Errorf("%q: escaped %q has byte %#x", s, e, c)
			}
		}
		if strings.ContainsAny(escape(s), "\n\t\x00") {
			t.Errorf("%q: escaped %q breaks a line", s, escape(s))
		}
	})
}

func TestEscapeKeepsReadable(t *testing.T) {
	for _, s := range []string{"plain", "with space", "caf\u00e9", "日本"} {
		if escape(s) != s {
			t.Errorf("%q is shown as %q", s, escape(s))
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 10: "150 KiB", 64 << 30: "64.0 GiB", 1 << 60: "1.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestModeString(t *testing.T) {
	for mode, want := range map[uint32]string{
		disk.TypeRegular | 0o644:  "-rw-r--r--",
		disk.TypeRegular | 0o7777: "-rwsrwsrwt",
		disk.TypeRegular | 0o7666: "-rwSrwSrwT",
		disk.TypeDir | 0o1777:     "drwxrwxrwt",
		disk.TypeSocket:           "s---------",
		0:                         "?---------",
	} {
		if got := modeString(mode); got != want {
			t.Errorf("%#o: %s, want %s", mode, got, want)
		}
	}
}

func TestArrange(t *testing.T) {
	app := newApp(nil, nil)
	for in, want := range map[string]string{
		"pool stat":                       "pool stat",
		"--json pool stat":                "pool stat --json",
		"--root /r pool --pool=/p stat":   "pool stat --root /r --pool=/p",
		"image ls i / -l":                 "image ls -l -- i /",
		"image -R ls i -- -x":             "image ls -R -- i -x",
		"image ls pool stat":              "image ls -- pool stat",
		"help pool ls":                    "pool ls --help",
		"bogus pool":                      "-- bogus pool",
		"image cat - x":                   "image cat -- - x",
		"doctor --containerd-config f -h": "doctor --containerd-config f -h",
	} {
		got, err := arrange(app, append([]string{"daxfsctl"}, strings.Fields(in)...))
		if s := strings.Join(got[min(1, len(got)):], " "); err != nil || s != want {
			t.Errorf("%q: %q, %v, want %q", in, s, err, want)
		}
	}
}
