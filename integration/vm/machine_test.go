package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What cannot work is refused before anything starts.
func TestMachineCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kernel := Kernel{Image: "image"}
	good := file("good", 4*mib)
	for _, c := range []struct {
		name    string
		machine Machine
		want    string // in the error, "" for none
	}{
		{"good", Machine{Kernel: kernel, Pool: good, NdPmem: true}, ""},
		{"no kernel", Machine{}, "without a kernel"},
		{"small", Machine{Kernel: kernel, Memory: 100 * mib}, "at least 268435456"},
		{"nd_pmem alone", Machine{Kernel: kernel, NdPmem: true}, "without a pool"},
		{"no pool file", Machine{Kernel: kernel, Pool: filepath.Join(dir, "none")}, "no such file"},
		{"empty pool", Machine{Kernel: kernel, Pool: file("empty", 0)}, "0 bytes"},
		{"odd pool", Machine{Kernel: kernel, Pool: file("odd", 3*mib)}, "multiple of 2097152"},
		{"relative", Machine{Kernel: kernel, Shared: "dir"}, "not absolute"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.machine.check()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}
