package daxmem

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakePCI is a directory such as /sys/bus/pci/devices with one ivshmem device,
// with some files changed; "-" means that there is none.
func fakePCI(t *testing.T, files map[string]string) (devices string) {
	t.Helper()
	devices = t.TempDir()
	dir := filepath.Join(devices, "0000:00:05.0")
	all := map[string]string{
		"vendor": "0x1af4\n", "device": "0x1110\n", "enable": "0\n",
		"resource": "0x00000000febf1000 0x00000000febf10ff 0x0000000000040200\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n" +
			"0x0000000800000000 0x00000008007fffff 0x000000000014220c\n",
		"resource2": strings.Repeat("\x00", 8*mib), "resource2_wc": strings.Repeat("\x00", 8*mib),
	}
	for name, content := range files {
		all[name] = content
	}
	for name, content := range all {
		if content != "-" {
			writeFile(t, filepath.Join(dir, name), content)
		}
	}
	return devices
}

const fakeDevice = "0000:00:05.0"

func TestIvshmem(t *testing.T) {
	for _, file := range []string{"resource2_wc", "resource2"} {
		files := map[string]string{}
		if file == "resource2" {
			files["resource2_wc"] = "-"
		}
		devices := fakePCI(t, files)
		r, err := openIvshmem(devices, "ivshmem:"+fakeDevice, fakeDevice, toOwn)
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind() != KindIvshmem || r.Path() != "ivshmem:"+fakeDevice || r.Size() != 8*mib || r.Address() != 0x800000000 || r.Private() || r.Persistent() {
			t.Errorf("%s %s of %d bytes at %#x", r.Kind(), r.Path(), r.Size(), r.Address())
		}
		if b, _ := os.ReadFile(filepath.Join(devices, fakeDevice, "enable")); string(b) != "1" {
			t.Errorf("the device is not enabled: %q", b)
		}
		if _, err := r.WriteAt([]byte("shared"), 3*mib); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(filepath.Join(devices, fakeDevice, file)); string(b[3*mib:3*mib+6]) != "shared" {
			t.Errorf("%s has %q", file, b[3*mib:3*mib+6])
		}
		if _, err := openIvshmem(devices, "", fakeDevice, toOwn); !errors.Is(err, ErrOwned) {
			t.Errorf("second owner: %v", err)
		}
		ro, err := openIvshmem(devices, "", fakeDevice, toAttach)
		if err != nil {
			t.Fatal(err)
		}
		w, err := ro.Window(0, blockSize, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Store(0, 1), w.Close(), ro.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestIvshmemBad(t *testing.T) {
	for name, c := range map[string]struct {
		files   map[string]string
		want    error
		message string
	}{
		"another vendor":       {map[string]string{"vendor": "0x8086\n"}, ErrInvalid, "vendor 0x8086"},
		"another device":       {map[string]string{"device": "0x1041\n"}, ErrInvalid, "device 0x1041, ivshmem has 0x1110"},
		"no such device":       {map[string]string{"vendor": "-"}, os.ErrNotExist, "vendor"},
		"no memory":            {map[string]string{"resource": strings.Repeat("0x0 0x0 0x0\n", 3)}, ErrInvalid, "BAR 2 is empty"},
		"too few BARs":         {map[string]string{"resource": "0x0 0x0 0x0\n"}, nil, "2 lines, want more than 2"},
		"not understood":       {map[string]string{"resource": "\n\n1 2\n"}, nil, `line "1 2" is not understood`},
		"ends before":          {map[string]string{"resource": "\n\n0x2000 0x1000 0x0\n"}, nil, "not understood"},
		"of no whole blocks":   {map[string]string{"resource": "\n\n0x2000 0x20ff 0x0\n"}, ErrInvalid, "256 bytes"},
		"cannot be enabled":    {map[string]string{"enable": "-"}, os.ErrNotExist, "enable PCI device"},
		"nothing to be mapped": {map[string]string{"resource2": "-"}, os.ErrNotExist, "resource2"},
	} {
		_, err := openIvshmem(fakePCI(t, c.files), "", fakeDevice, toOwn)
		if err == nil || !strings.Contains(err.Error(), c.message) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
