package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// Memory that is not there is said to be made at the first start only where an
// owner makes it; else the remedy says what is wrong.
func TestDoctorMissingMemory(t *testing.T) {
	s := newSite(t)
	s.close()
	for location, made := range map[string]bool{
		fmt.Sprintf("memfd:none-%d,size=64MiB", os.Getpid()): true,
		"phys:No Such Memory":                                false,
		"ivshmem:ffff:00:1f.0":                               false,
		"lazy-cma:No Such Memory":                            false,
		"/dev/pmem99":                                        false,
	} {
		s.more = fmt.Sprintf("path = %q", location)
		c := s.check("pool")
		if made != (c.Status == ok) || made != strings.Contains(c.Detail, "made at the daemon's first start") || !made && !strings.Contains(c.Remedy, "that is not there: correct it") {
			t.Errorf("%s: %+v", location, c)
		}
		if e := s.check("engine"); made != (e.Status == warn) {
			t.Errorf("%s: %+v", location, e)
		}
	}
}

// A pool that a reboot takes is said to be one, whatever its kind, unless there
// are copies.
func TestDoctorVolatilePool(t *testing.T) {
	s := newSite(t)
	s.close()
	location := fmt.Sprintf("memfd:doctor-%d,size=64MiB", os.Getpid())
	pool, err := daxmem.OpenOrCreate(t.Context(), location, daxmem.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, c := range []struct {
		top, more, detail string
		want              verdict
	}{
		{"", "", "sound", ok},
		{"", "path = \"" + location + "\"", "unpacked again from what containerd keeps", ok},
		{`containerd = ""`, "path = \"" + location + "\"", "in memory only (after a reboot: nothing)", warn},
		{`containerd = ""`, "path = \"" + location + "\"\npersist = true", "with copies in " + s.dir + "/spill.daxfs", ok},
	} {
		s.top, s.more = c.top, c.more
		got := s.check("pool")
		if got.Status != c.want || c.detail != "sound" && !strings.Contains(got.Detail, c.detail) {
			t.Errorf("%s %s: %+v", c.top, c.more, got)
		}
	}
}
