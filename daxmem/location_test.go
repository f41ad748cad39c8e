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

		"/dev/dax0.0":                      {Path: "/dev/dax0.0"},
		"phys:Reserved":                    {Scheme: KindPhys, Name: "Reserved"},
		"phys:Multikernel Memory Pool":     {Scheme: KindPhys, Name: "Multikernel Memory Pool"},
		"phys:CXL Window 0,size=1GiB":      {Scheme: KindPhys, Name: "CXL Window 0", Size: 1 << 30},
		"ivshmem:0000:00:05.0":             {Scheme: KindIvshmem, Name: "0000:00:05.0"},
		"memfd:size=1GiB":                  {Scheme: KindMemfd, Name: "pool", Size: 1 << 30},
		"memfd:other,size=0x200000":        {Scheme: KindMemfd, Name: "other", Size: 2 << 20},
		"dma-heap:system,size=1GiB":        {Scheme: KindDmaHeap, Name: "system", Size: 1 << 30},
		"lazy-cma:Multikernel Memory Pool": {Scheme: KindLazyCMA, Name: "Multikernel Memory Pool"},
		"lazy-cma:images,size=64MiB":       {Scheme: KindLazyCMA, Name: "images", Size: 64 << 20},
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

		"phys:a,b":                            "want phys:ADDRESS,size=SIZE",
		"phys:Reserved,size=3MiB":             "size 3145728 is not",
		"ivshmem:":                            "want ivshmem:DOMAIN:BUS:DEVICE.FUNCTION",
		"ivshmem:../../etc":                   "want ivshmem:",
		"ivshmem:00:05.0":                     "want ivshmem:",
		"ivshmem:0000:00:05.0,size=2MiB":      "want ivshmem:",
		"memfd:":                              "want memfd:[NAME,]size=SIZE",
		"memfd:pool":                          "want memfd:",
		"memfd:../x,size=2MiB":                "want memfd:",
		"memfd:size=1":                        "size 1 is not",
		"memfd:size=2MiB,size=2MiB":           `size "2MiB,size=2MiB"`,
		"dma-heap:system":                     "want dma-heap:HEAP,size=SIZE",
		"dma-heap:size=2MiB":                  "want dma-heap:",
		"dma-heap:../system,size=2MiB":        "want dma-heap:",
		"lazy-cma:":                           "want lazy-cma:",
		"lazy-cma:" + strings.Repeat("n", 64): "want lazy-cma:",
		"devdax:/dev/dax0.0":                  "neither an absolute path",
		"tape:0":                              "ivshmem:DOMAIN:BUS:DEVICE.FUNCTION",
	} {
		_, err := ParseLocation(text)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
