package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine is a root directory with what a test puts into it.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		to, link := strings.CutPrefix(content, "-> ")
		if !link {
			writeFile(t, file, content)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, file); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const detectIomem = `00000000-00000fff : Reserved
00100000-3fffffff : System RAM
40000000-4fffffff : Reserved
100000000-13fffffff : Multikernel Memory Pool
140000000-17fffffff : Soft Reserved
180000000-1bfffffff : Soft Reserved
  180000000-1bfffffff : dax1.0
1c0000000-1c00fffff : Soft Reserved
`

// Each kind of memory is found where the kernel shows it, and what is found is a
// location of that kind.
func TestDetect(t *testing.T) {
	const pci = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
	root := machine(t, map[string]string{
		"dev/udmabuf": "", "sys/module/udmabuf/parameters/size_limit_mb": "64\n",
		"dev/dma_heap/system": "", "dev/dma_heap/reserved": "",
		"dev/dax0.0": "", "sys/bus/dax/devices/dax0.0/size": "8388608\n", "sys/bus/dax/devices/dax0.0/align": "4096\n",
		"sys/bus/dax/devices/dax0.0/resource": "0x240000000\n",
		"dev/dax1.0":                          "", "sys/bus/dax/devices/dax1.0/size": "8388608\n", "sys/bus/dax/devices/dax1.0/align": "2097152\n",
		"sys/bus/dax/devices/dax1.0/driver": "-> ../../drivers/kmem",
		"sys/bus/dax/devices/dax2.0/size":   "8388608\n", "sys/bus/dax/devices/dax2.0/align": "2097152\n",
		"sys/bus/dax/devices/dax3.0/align": "2097152\n",
		"sys/class/block/pmem0/size":       "16384\n", "sys/class/block/pmem0/queue/dax": "1\n",
		"sys/class/block/pmem1s/size": "16384\n", "sys/class/block/pmem1s/queue/dax": "0\n",
		"sys/class/block/pmem0p1/size": "16384\n", "sys/class/block/sda/size": "16384\n",
		"proc/iomem":   detectIomem,
		"proc/cmdline": "quiet memmap=256M$0x40000000,1M$0x41000000 memmap=16M$0x10000000 memmap=1G!4G memmap=x$y\n",
		"sys/bus/pci/devices/0000:00:05.0/vendor":   "0x1af4\n",
		"sys/bus/pci/devices/0000:00:05.0/device":   "0x1110\n",
		"sys/bus/pci/devices/0000:00:05.0/resource": pci + pci + "0x0000000800000000 0x00000008007fffff 0x000000000014220c\n",
		"sys/bus/pci/devices/0000:00:06.0/vendor":   "0x1af4\n",
		"sys/bus/pci/devices/0000:00:06.0/device":   "0x1110\n",
		"sys/bus/pci/devices/0000:00:06.0/resource": pci + pci + "0x0000000900000000 0x00000009007fffff 0x000000000014220c\n",
		"sys/bus/pci/devices/0000:00:06.0/driver":   "-> ../../drivers/uio_ivshmem",
		"sys/bus/pci/devices/0000:00:07.0/vendor":   "0x1af4\n",
		"sys/bus/pci/devices/0000:00:07.0/device":   "0x1001\n",
		"dev/lazy_cma": "",
	})
	found, err := Detect(root)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Found)
	for _, f := range found {
		got[f.Location] = f
	}
	for _, want := range []struct{ kind, location, detail, taken string }{
		{KindMemfd, "memfd:size=SIZE", "up to 64 MiB", ""},
		{KindDmaHeap, "dma-heap:system,size=SIZE", "heap system", ""},
		{KindDmaHeap, "dma-heap:reserved,size=SIZE", "heap reserved", ""},
		{KindDevdax, "/dev/dax0.0", "8MiB in units of 4KiB at 0x240000000", ""},
		{KindDevdax, "/dev/dax1.0", "without one address", "daxctl reconfigure-device -m devdax dax1.0"},
		{KindDevdax, "/dev/dax2.0", "", "no driver has it"},
		{KindDevdax, "/dev/dax3.0", "", "no such file"},
		{KindPmem, "/dev/pmem0", "8MiB", ""},
		{KindPmem, "/dev/pmem1s", "8MiB", "it has no DAX"},
		{KindPhys, "phys:Multikernel Memory Pool", "1GiB, Multikernel Memory Pool at 0x100000000", ""},
		{KindPhys, "phys:Soft Reserved", "1GiB, Soft Reserved at 0x140000000", ""},
		{KindPhys, "phys:0x180000000,size=1073741824", "", "dax1.0 has a part of it"},
		{KindPhys, "phys:0x1c0000000,size=0", "", "no whole 2 MiB"},
		{KindPhys, "phys:0x40000000,size=268435456", "256MiB, memmap= of the command line", ""},
		{KindPhys, "phys:0x10000000,size=16777216", "", "overlaps System RAM"},
		{KindIvshmem, "ivshmem:0000:00:05.0", "8MiB at 0x800000000", ""},
		{KindIvshmem, "ivshmem:0000:00:06.0", "", "the driver uio_ivshmem has it"},
		{KindLazyCMA, "lazy-cma:NAME,size=SIZE", "contiguous", ""},
	} {
		f, ok := got[want.location]
		delete(got, want.location)
		if !ok || f.Kind != want.kind || !strings.Contains(f.Detail, want.detail) || !strings.Contains(f.Taken, want.taken) || (f.Taken == "") != (want.taken == "") {
			t.Errorf("%s: %+v, %v; want %+v", want.location, f, ok, want)
		}
		if f.Taken != "" {
			continue
		}
		l, err := ParseLocation(strings.ReplaceAll(f.Location, "SIZE", "64MiB"))
		if err != nil || l.Path == "" && l.scheme() != f.Kind {
			t.Errorf("%s: %+v, %v", f.Location, l, err)
		}
	}
	if len(got) > 0 {
		t.Errorf("found too: %v", got)
	}
	kinds := make(map[string]bool)
	for _, f := range found {
		kinds[f.Kind] = true
	}
	for _, k := range Kinds() {
		if k.Kind != KindFile && !kinds[k.Kind] {
			t.Errorf("kind %s is not looked for", k.Kind)
		}
	}
}

// A machine without any of it has nothing, and what cannot be read is an error
// that leaves the rest.
func TestDetectNothing(t *testing.T) {
	if found, err := Detect(machine(t, map[string]string{"proc/iomem": "00001000-0009fbff : System RAM\n"})); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	if found, err := Detect(t.TempDir()); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	hidden := machine(t, map[string]string{"proc/iomem": "00000000-00000000 : System RAM\n", "dev/lazy_cma": ""})
	if found, err := Detect(hidden); !errors.Is(err, os.ErrPermission) || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
}

func TestMemparse(t *testing.T) {
	for text, want := range map[string]uint64{"4096": 4096, "0x140000000": 0x140000000, "256M": 256 << 20, "4g": 4 << 30, "1T": 1 << 40} {
		if got, err := memparse(text); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "1P", "-1", "99999T"} {
		if got, err := memparse(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	if got := memmaps("memmap=3M$0x40100000"); fmt.Sprint(got) != "[phys:0x40200000,size=2097152]" {
		t.Errorf("%v", got)
	}
}
