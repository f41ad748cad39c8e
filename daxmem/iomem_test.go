package daxmem

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func mustParseIomem(t *testing.T, text string) []*resource {
	t.Helper()
	all, err := parseIomem(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestParseIomem(t *testing.T) {
	all := mustParseIomem(t, "00001000-0009fbff : System RAM\n  0000a000-0000bfff : Kernel data\n    0000a000-0000a00f : deep : with a colon\n100000-1fffff : a\n")
	if len(all) != 4 || all[2].name != "deep : with a colon" || all[2].from != 0xa000 || all[2].to != 0xa00f {
		t.Errorf("%v", all)
	}
	if w := all[0].within; len(w) != 1 || w[0] != "Kernel data" || len(all[1].within) != 1 || len(all[3].within) != 0 {
		t.Errorf("%v, %v, %v", w, all[1].within, all[3].within)
	}
	for _, text := range []string{"some-thing : System RAM\n", "1000 : a\n", "1000-2000 a\n", "  1000-2000 : in nothing\n", "1000-2000 : a\n    1000-1fff : two deeper\n", "\n"} {
		if _, err := parseIomem(strings.NewReader(text)); err == nil {
			t.Errorf("%q is understood", text)
		}
	}
}

// A resource is found by its name when it is the only one that can be meant,
// wherever it stands in the list.
func TestFindNamed(t *testing.T) {
	const iomem = `00000000-00000fff : Reserved
0009fc00-0009ffff : Reserved
00100000-3fffffff : System RAM
7f000000-7f3fffff : Reserved
  7f000000-7f0fffff : a driver
80100000-84ffffff : Reserved
100000000-13fffffff : Multikernel Memory Pool
  100000000-107ffffff : mk-instance-1
140000000-17fffffff : Multikernel Memory Pool
180000000-1bfffffff : Soft Reserved
  180000000-1bfffffff : daxfs
1c0000000-1ffffffff : twins
200000000-23fffffff : twins
240000000-27fffffff : twins of two sizes
280000000-287ffffff : twins of two sizes
`
	all := mustParseIomem(t, iomem)
	for _, c := range []struct {
		name    string
		size    int64
		address uint64 // 0: an error
		got     int64
		message string
	}{
		// Small ones and one with a driver are passed over, and edges cut off.
		{"Reserved", 0, 0x80200000, 0x84e00000 - 0x80000000, ""},
		{"Multikernel Memory Pool", 0, 0x140000000, 1 << 30, ""},
		{"Soft Reserved", 1 << 30, 0x180000000, 1 << 30, ""}, // in use by our module only
		{"twins of two sizes", 128 << 20, 0x280000000, 128 << 20, ""},

		{"twins", 0, 0, 0, "2 resources \"twins\", 2 of them of 2 MiB and more without other resources in them, want 1: [0x1c0000000,0x1ffffffff], [0x200000000,0x23fffffff]"},
		{"twins", 1 << 30, 0, 0, "2 of them"},
		{"twins of two sizes", 0, 0, 0, "2 of them"},
		{"Multikernel Memory Pool", 512 << 20, 0, 0, "0 of them of 2 MiB and more without other resources in them and of 536870912 bytes, want 1: [0x100000000,0x13fffffff] with mk-instance-1 in it, "},
		{"a driver", 0, 0, 0, "0 of them"}, // 1 MiB
	} {
		got, err := findNamed(all, Location{Scheme: KindPhys, Name: c.name, Size: c.size})
		if c.address == 0 {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.message) {
				t.Errorf("%s of %d: %+v, %v", c.name, c.size, got, err)
			}
		} else if err != nil || got.Address != c.address || got.Size != c.got {
			t.Errorf("%s of %d: %+v, %v", c.name, c.size, got, err)
		}
	}
	if _, err := findNamed(all, Location{Name: "nothing"}); !errors.Is(err, ErrNoMemory) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	zero := mustParseIomem(t, "00000000-00000000 : Reserved\n00000000-00000000 : twins\n")
	if _, err := findNamed(zero, Location{Name: "twins"}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("without the right to see addresses: %v", err)
	}
}
