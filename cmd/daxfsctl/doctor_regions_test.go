package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// Each region that the machine has is a line with the configuration that uses it.
func TestDoctorRegions(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"dev/dma_heap/system": "", "dev/lazy_cma": "",
		"sys/class/block/pmem0/size": "16384\n", "sys/class/block/pmem0/queue/dax": "1\n",
		"sys/class/block/pmem1/size": "16384\n",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := &doctor{ctx: t.Context(), cfg: config.Default(), root: root}
	d.regions()
	var text strings.Builder
	for _, c := range d.checks {
		if c.Status != ok {
			t.Errorf("%+v", c)
		}
		text.WriteString(c.Name + ": " + c.Detail + "\n")
	}
	wants(t, text.String(), `pool.path = "dma-heap:system,size=SIZE"`, `region_pmem: 8MiB: pool.path = "/dev/pmem0"`,
		"region_pmem: /dev/pmem1 cannot be used as it is: it has no DAX", `region_lazy-cma: `)

	d = &doctor{ctx: t.Context(), cfg: config.Default(), root: t.TempDir()}
	d.regions()
	if len(d.checks) != 1 || d.checks[0].Status != ok || !strings.Contains(d.checks[0].Detail, "a pool in a file") {
		t.Errorf("%+v", d.checks)
	}
}
