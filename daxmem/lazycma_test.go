package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeLazyCMA is a driver that has allocated ranges of a file. It maps as the
// real one does: from the beginning of an allocation.
func fakeLazyCMA(t *testing.T, iomem string) lazyCMA {
	t.Helper()
	device := filepath.Join(t.TempDir(), "lazy_cma")
	writeFile(t, device, "")
	if err := os.Truncate(device, 64*mib); err != nil {
		t.Fatal(err)
	}
	next := int64(32 * mib)
	return lazyCMA{
		device: device,
		iomem:  func() ([]*resource, error) { return parseIomem(strings.NewReader(iomem)) },
		alloc: func(f *os.File, name string, size int64) (uint64, error) {
			if next+size > 64*mib {
				return 0, unix.ENOMEM
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte("old "), mib), next); err != nil {
				return 0, err
			}
			at := next
			next += size
			iomem += fmt.Sprintf("  %08x-%08x : %s\n", at, next-1, name)
			return uint64(at), nil
		},
	}
}

const lazyIomem = `00000000-3fffffff : System RAM
  00800000-00ffffff : Multikernel Memory Pool
  01000000-017fffff : Multikernel Memory Pool
    01000000-013fffff : mk-instance-1
`

// An allocation is found by its name, made by its owner where there is none,
// and stays.
func TestLazyCMA(t *testing.T) {
	d := fakeLazyCMA(t, lazyIomem)
	l := Location{Scheme: KindLazyCMA, Name: "Multikernel Memory Pool"}
	r, err := d.open(l.String(), l, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind() != KindLazyCMA || r.Address() != 0x800000 || r.Size() != 8*mib || r.Path() != "lazy-cma:Multikernel Memory Pool" {
		t.Errorf("%s %s of %d bytes at %#x", r.Kind(), r.Path(), r.Size(), r.Address())
	}
	if _, err := d.open("", l, toOwn); !errors.Is(err, ErrOwned) {
		t.Errorf("second owner: %v", err)
	}
	defer r.Close()

	l = Location{Scheme: KindLazyCMA, Name: "images", Size: 16 * mib}
	for _, a := range []access{toAttach, toInspect} {
		if _, err := d.open("", l, a); !errors.Is(err, ErrNoMemory) {
			t.Errorf("before it is made: %v", err)
		}
	}
	region, err := d.open(l.String(), l, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Create(bg, region, manual) // of memory that had something in it
	if err != nil {
		t.Fatal(err)
	}
	addLayer(t, p, "a", randomBytes(1, 3*mib))
	mustCheck(t, p)
	ro, err := d.open("", l, toAttach)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := Attach(bg, ro, Options{bootID: func() ([16]byte, error) { return [16]byte{1}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Layer(key("a")); err != nil {
		t.Error(err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	// Without a size, now that it is there.
	if region, err = d.open("", Location{Name: "images"}, toOwn); err != nil {
		t.Fatal(err)
	}
	if p, err = Open(bg, region, manual); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	mustClose(t, p)
}

func TestLazyCMABad(t *testing.T) {
	d := fakeLazyCMA(t, lazyIomem+"  02000000-027fffff : Multikernel Memory Pool\n")
	for _, c := range []struct {
		l       Location
		want    error
		message string
	}{
		{Location{Name: "Multikernel Memory Pool"}, ErrInvalid, "3 resources \"Multikernel Memory Pool\", 2 of them without other resources in them, want 1: [0x800000,0xffffff], [0x1000000,0x17fffff] with mk-instance-1 in it, [0x2000000,0x27fffff]"},
		{Location{Name: "Multikernel Memory Pool", Size: 2 * mib}, ErrInvalid, "0 of them without other resources in them and of 2097152 bytes"},
		{Location{Name: "none"}, ErrNoMemory, ""},
		{Location{Name: "large", Size: 64 * mib}, unix.ENOMEM, "allocate 67108864 bytes"},
	} {
		if _, err := d.open("", c.l, toOwn); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%v: %v", c.l, err)
		}
	}
	d.iomem = func() ([]*resource, error) {
		return parseIomem(strings.NewReader("00000000-00000000 : System RAM\n"))
	}
	if _, err := d.open("", Location{Name: "images", Size: 2 * mib}, toOwn); !errors.Is(err, os.ErrPermission) {
		t.Errorf("without the right to see addresses: %v", err)
	}
	// The real request, of what is no such device.
	d = fakeLazyCMA(t, lazyIomem)
	d.alloc = allocLazyCMA
	if _, err := d.open("", Location{Name: "images", Size: 2 * mib}, toOwn); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("not the driver: %v", err)
	}
}

// The argument is struct lazy_cma_allocation_data.
func TestLazyCMAArgument(t *testing.T) {
	b := lazyCMAArgument("images", 2*mib)
	if want := "0000200000000000" + "0000000000000000" + "ffffffff" + "00000000" + "696d61676573" + strings.Repeat("00", 58); fmt.Sprintf("%x", b) != want {
		t.Errorf("%x, want %s", b, want)
	}
}
