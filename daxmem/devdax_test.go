package daxmem

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeDevdax is a file that stands for a DAX device, and what sysfs says about
// it; a file of the description with "" is not there.
func fakeDevdax(t *testing.T, under string, size int64, files map[string]string) (dev, sys string) {
	t.Helper()
	dir := t.TempDir()
	real := filepath.Join(dir, "devices", under, "dax0.0")
	sys = filepath.Join(dir, "char-252-0")
	dev = filepath.Join(dir, "dax0.0")
	for _, d := range []string{real, filepath.Join(dir, "bus/dax"), filepath.Join(dir, "class/tty")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bus := "bus/dax"
	if b, ok := files["subsystem"]; ok {
		bus = b
	}
	for link, to := range map[string]string{sys: real, filepath.Join(real, "subsystem"): filepath.Join(dir, bus)} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"size": "8388608\n", "align": "2097152\n", "resource": "0x240000000\n"} {
		if c, ok := files[name]; ok {
			content = c
		}
		if content != "" {
			writeFile(t, filepath.Join(real, name), content)
		}
	}
	for _, m := range strings.Fields(files["mappings"]) {
		if err := os.Mkdir(filepath.Join(real, m), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, dev, "")
	if err := os.Truncate(dev, size); err != nil {
		t.Fatal(err)
	}
	return dev, sys
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func openFakeDevdax(t *testing.T, dev, sys string, a access) (Region, error) {
	t.Helper()
	f, err := os.OpenFile(dev, a.mode(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return mapDevdax(f, sys, dev, a)
}

func TestDevdax(t *testing.T) {
	dev, sys := fakeDevdax(t, "platform/hmem.0", 8*mib, map[string]string{"mappings": "mapping0"})
	r, err := openFakeDevdax(t, dev, sys, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind() != KindDevdax || r.Path() != dev || r.Size() != 8*mib || r.Address() != 0x240000000 || !r.Fixed() || r.Private() || r.Persistent() {
		t.Errorf("%s %s of %d bytes at %#x, fixed %v, private %v, persistent %v", r.Kind(), r.Path(), r.Size(), r.Address(), r.Fixed(), r.Private(), r.Persistent())
	}
	if _, err := r.WriteAt([]byte("shared"), 5*mib); err != nil {
		t.Fatal(err)
	}
	if _, err := openFakeDevdax(t, dev, sys, toOwn); !errors.Is(err, ErrOwned) {
		t.Errorf("second owner: %v", err)
	}
	for _, a := range []access{toAttach, toInspect} {
		ro, err := openFakeDevdax(t, dev, sys, a)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 6)
		if _, err := ro.ReadAt(b, 5*mib); err != nil || string(b) != "shared" {
			t.Errorf("a reader sees %q, %v", b, err)
		}
		if _, err := ro.WriteAt(b, 0); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a reader writes: %v", err)
		}
		w, err := ro.Window(blockSize, blockSize, true)
		if a == toInspect {
			if !errors.Is(err, os.ErrPermission) {
				t.Errorf("a writable window for inspection: %v", err)
			}
		} else if err != nil {
			t.Error(err)
		} else if err := errors.Join(w.Store(blockSize, 7), w.Close()); err != nil {
			t.Error(err)
		}
		if err := ro.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = openFakeDevdax(t, dev, sys, toOwn); err != nil {
		t.Fatalf("after the owner's end: %v", err)
	}
	r.Close()
}

// Memory of an NVDIMM is persistent, and its owner flushes it.
func TestDevdaxPmem(t *testing.T) {
	dev, sys := fakeDevdax(t, "LNXSYSTM:00/ndbus0/region0/dax0.1", 8*mib, nil)
	real, err := filepath.EvalSymlinks(sys)
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(real, "../../deep_flush")
	writeFile(t, deep, "")
	r, err := openFakeDevdax(t, dev, sys, toOwn)
	if !canFlush {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if !r.Persistent() {
		t.Error("not persistent")
	}
	if _, err := r.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(deep); string(b) != "1" {
		t.Errorf("deep flush: %q", b)
	}
}

// What sysfs says decides.
func TestDevdaxSysfs(t *testing.T) {
	for name, c := range map[string]struct {
		files   map[string]string
		want    error // nil: opens
		message string
		address uint64
	}{
		"another class":         {map[string]string{"subsystem": "class/tty"}, ErrInvalid, "not a DAX device", 0},
		"no size":               {map[string]string{"size": ""}, os.ErrNotExist, "size of ", 0},
		"no alignment":          {map[string]string{"align": ""}, os.ErrNotExist, "alignment of ", 0},
		"no number":             {map[string]string{"size": "0x1000\n"}, nil, "size of ", 0},
		"size 0":                {map[string]string{"size": "0\n"}, ErrInvalid, "memory of 0 bytes", 0},
		"not whole":             {map[string]string{"size": "8384512\n"}, ErrInvalid, "8384512 bytes in units of 2097152", 0},
		"alignment 0":           {map[string]string{"align": "0\n"}, ErrInvalid, "in units of 0", 0},
		"address not told":      {map[string]string{"resource": ""}, nil, "", 0},
		"address of two ranges": {map[string]string{"mappings": "mapping0 mapping1"}, nil, "", 0},
		"small pages":           {map[string]string{"align": "4096\n"}, nil, "", 0x240000000},
	} {
		dev, sys := fakeDevdax(t, "platform/hmem.0", 8*mib, c.files)
		r, err := openFakeDevdax(t, dev, sys, toInspect)
		if err == nil {
			if r.Address() != c.address || c.message != "" {
				t.Errorf("%s: opened, address %#x", name, r.Address())
			}
			r.Close()
			continue
		}
		if c.message == "" || !strings.Contains(err.Error(), c.message) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
