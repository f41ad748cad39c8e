package daxmem

import (
	"errors"
	"strings"
	"testing"
)

func TestParseLocation(t *testing.T) {
	for text, want := range map[string]Location{
		"/var/lib/pool":                        {Path: "/var/lib/pool"},
		"/dev/pmem0":                           {Path: "/dev/pmem0"},
		"phys:0x140000000,size=1GiB":           {Address: 0x140000000, Size: 1 << 30},
		"phys:0x140000000,size=0x40000000":     {Address: 0x140000000, Size: 1 << 30},
		"phys:5368709120,size=1073741824":      {Address: 5 << 30, Size: 1 << 30},
		"phys:0x200000,size=2m":                {Address: 2 << 20, Size: 2 << 20},
		"phys:0xfffffffe00000,size=2MiB":       {Address: 1<<52 - 2<<20, Size: 2 << 20},
		"phys:0x100000000,size=4194303.9990KB": {}, // not whole
	} {
		got, err := ParseLocation(text)
		if want == (Location{}) {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %+v, %v", text, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
		if again, err := ParseLocation(got.String()); err != nil || again != got {
			t.Errorf("%s is written as %s, which reads as %+v, %v", text, got, again, err)
		}
	}
}

// What is wrong is refused, and named.
func TestParseBadLocation(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "absolute path",
		"pool":                              "absolute path",
		"phys":                              "absolute path",
		"phys:":                             "want phys:ADDRESS,size=SIZE",
		"phys:0x140000000":                  "want phys:ADDRESS,size=SIZE",
		"phys:0x140000000,1GiB":             "want phys:ADDRESS,size=SIZE",
		"phys:,size=1GiB":                   `address ""`,
		"phys:140000000h,size=1GiB":         `address "140000000h"`,
		"phys:-1,size=1GiB":                 `address "-1"`,
		"phys:0x140000000,size=":            `size ""`,
		"phys:0x140000000,size=lots":        `size "lots"`,
		"phys:0,size=2MiB":                  "address 0x0 is not",
		"phys:0x140001000,size=2MiB":        "address 0x140001000 is not",
		"phys:0x140000000,size=0":           "size 0 is not",
		"phys:0x140000000,size=-2097152":    "size -2097152 is not",
		"phys:0x140000000,size=3MiB":        "size 3145728 is not",
		"phys:0x140000000,size=2MiB,offset": `size "2MiB,offset"`,
		"phys:0x10000000000000,size=2MiB":   "beyond the last physical address",
		"phys:0xfffffffe00000,size=4MiB":    "beyond the last physical address",
	} {
		_, err := ParseLocation(text)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
