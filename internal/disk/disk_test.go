package disk

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestRoundTrip: what is encoded is decoded again, with no field forgotten.
func TestRoundTrip(t *testing.T) {
	// Every field gets a value of its own, so that two in each other's place
	// would show.
	number := func(v reflect.Value) {
		for i := range v.NumField() {
			f := v.Field(i)
			switch f.Kind() {
			case reflect.Array:
				for j := range f.Len() {
					f.Index(j).SetUint(uint64(i + j + 1))
				}
			case reflect.Int64:
				f.SetInt(-int64(i) - 1)
			default:
				f.SetUint(uint64(i+1) | 1<<(f.Type().Bits()-1))
			}
		}
	}
	var in Inode
	number(reflect.ValueOf(&in).Elem())
	b := make([]byte, InodeSize)
	in.Encode(b)
	if got := DecodeInode(b); got != in {
		t.Errorf("inode %+v, want %+v", got, in)
	}
	var sb Superblock
	number(reflect.ValueOf(&sb).Elem())
	sb.Version = VersionNative
	b = make([]byte, SuperblockSize)
	sb.Encode(b)
	if got, err := DecodeSuperblock(b); err != nil || *got != sb {
		t.Errorf("superblock %+v, %v, want %+v", got, err, sb)
	}
	var e Extent
	number(reflect.ValueOf(&e).Elem())
	b = make([]byte, ExtentSize)
	e.Encode(b)
	if got := DecodeExtent(b); got != e {
		t.Errorf("extent %+v, want %+v", got, e)
	}
	var d Dirent
	number(reflect.ValueOf(&d).Elem())
	b = make([]byte, DirentSize)
	d.Encode(b)
	if got := DecodeDirent(b); got != d {
		t.Errorf("dirent %+v, want %+v", got, d)
	}
}

// TestEveryByteEncoded: an encoder overwrites all of its record, whatever was
// there.
func TestEveryByteEncoded(t *testing.T) {
	dirty := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = 0xa5
		}
		return b
	}
	for _, r := range []struct {
		name   string
		size   int
		encode func(b []byte)
	}{
		{"superblock", SuperblockSize, func(b []byte) { (&Superblock{Version: VersionNative}).Encode(b) }},
		{"superblock v8", SuperblockSize, func(b []byte) { (&Superblock{Version: VersionV8}).Encode(b) }},
		{"inode", InodeSize, func(b []byte) { (&Inode{}).Encode(b) }},
		{"dirent", DirentSize, func(b []byte) { Dirent{}.Encode(b) }},
		{"dirent v8", DirentV8Stride, func(b []byte) { EncodeDirentV8(b, 0, 0, "") }},
		{"extent", ExtentSize, func(b []byte) { (&Extent{}).Encode(b) }},
	} {
		b, clean := dirty(r.size), make([]byte, r.size)
		r.encode(b)
		r.encode(clean)
		for i := range b {
			if b[i] != clean[i] {
				t.Errorf("%s: byte %d keeps what was there", r.name, i)
				break
			}
		}
	}
}

func TestDecodeSuperblockSizes(t *testing.T) {
	b := make([]byte, SuperblockSize)
	(&Superblock{Version: VersionNative}).Encode(b)
	for _, n := range []int{0, 1, 4, 112, 1023} {
		if _, err := DecodeSuperblock(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := DecodeSuperblock(append(b, 1, 2, 3)); err != nil {
		t.Error(err)
	}
}

// TestErrorClasses pins what containerd's clients see.
func TestErrorClasses(t *testing.T) {
	for _, tt := range []struct {
		err   error
		class func(error) bool
	}{
		{ErrCorrupt, errdefs.IsDataLoss},
		{Corruptf("x %d", 1), errdefs.IsDataLoss},
		{ErrNotDAXFS, errdefs.IsInvalidArgument},
		{ErrUnsupported, errdefs.IsNotImplemented},
	} {
		if !tt.class(tt.err) || !IsBad(tt.err) || !IsBad(fmt.Errorf("wrapped: %w", tt.err)) {
			t.Errorf("%v has the wrong class", tt.err)
		}
	}
	if IsBad(errors.New("I/O error")) {
		t.Error("an I/O error is taken for a bad image")
	}
}

func TestInside(t *testing.T) {
	for _, tt := range []struct {
		off, n, size uint64
		want         bool
	}{
		{0, 0, 0, true}, {0, 1, 0, false}, {1, 0, 0, false}, {5, 5, 10, true}, {5, 6, 10, false}, {10, 0, 10, true}, {11, 0, 10, false},
		{math.MaxUint64, 1, math.MaxUint64, false}, {1, math.MaxUint64, math.MaxUint64, false}, {math.MaxUint64 - 1, 1, math.MaxUint64, true},
	} {
		if got := Inside(tt.off, tt.n, tt.size); got != tt.want {
			t.Errorf("Inside(%d, %d, %d) = %v", tt.off, tt.n, tt.size, got)
		}
	}
}

// TestDev is checked against the kernel's macros (include/linux/kdev_t.h).
func TestDev(t *testing.T) {
	for _, tt := range []struct{ major, minor, rdev uint32 }{
		{0, 0, 0}, {1, 3, 0x103}, {8, 1, 0x801}, {259, 70000, 259<<8 | 70000&0xff | (70000>>8)<<20}, {4095, 1<<20 - 1, 0xffffffff},
	} {
		if got := EncodeDev(tt.major, tt.minor); got != tt.rdev {
			t.Errorf("EncodeDev(%d, %d) = %#x, want %#x", tt.major, tt.minor, got, tt.rdev)
		}
		if major, minor := DecodeDev(tt.rdev); major != tt.major || minor != tt.minor {
			t.Errorf("DecodeDev(%#x) = %d:%d", tt.rdev, major, minor)
		}
	}
}

func TestXattrs(t *testing.T) {
	long := strings.Repeat("n", 255)
	for _, tt := range []struct {
		name   string
		index  uint8
		suffix string
		ok     bool
	}{
		{"user.a", 1, "a", true}, {"user." + long, 1, long, true}, {"user." + long + "n", 0, "", false}, {"user.", 0, "", false},
		{"trusted.x.y", 4, "x.y", true}, {"security.capability", 6, "capability", true},
		{"system.posix_acl_access", 2, "", true}, {"system.posix_acl_default", 3, "", true}, {"system.nfs4_acl", 0, "", false},
		{"system.posix_acl_accessx", 0, "", false}, {"lustre.lov", 0, "", false}, {"", 0, "", false}, {"user.a\x00b", 0, "", false},
	} {
		if index, suffix, ok := SplitXattr(tt.name); index != tt.index || suffix != tt.suffix || ok != tt.ok {
			t.Errorf("SplitXattr(%.20q) = %d, %.20q, %v", tt.name, index, suffix, ok)
		}
	}
	set := []Xattr{
		{"security.a", ""}, {"system.posix_acl_access", "acl"}, {"trusted.t", "\x00\xff"}, {"user." + long, strings.Repeat("v", MaxXattrValue)}, {"user.z", "1"},
	}
	var b []byte
	for _, x := range set {
		b = AppendXattr(b, x)
	}
	if len(b)%4 != 0 {
		t.Errorf("run of %d bytes", len(b))
	}
	got, err := DecodeXattrs(b)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(set) {
		t.Errorf("run decodes to %d attributes, %v", len(got), err)
	}
	for n := 1; n < 300; n++ { // through the first entries
		if _, err := DecodeXattrs(b[:n]); n%4 != 0 && err == nil {
			t.Errorf("run cut at %d passes", n)
		}
	}
}

func FuzzDir(f *testing.F) {
	b := make([]byte, DirHeaderSize+2*DirentSize+5)
	b[0] = 2
	Dirent{Ino: 1, NameOff: 32, NameLen: 2, Type: 8}.Encode(b[8:])
	Dirent{Ino: 2, NameOff: 34, NameLen: 3, Type: 4}.Encode(b[20:])
	copy(b[32:], "aabbb")
	f.Add(b, false)
	v8 := make([]byte, 2*DirentV8Stride)
	EncodeDirentV8(v8, 1, TypeRegular, "a")
	EncodeDirentV8(v8[DirentV8Stride:], 2, TypeDir, strings.Repeat("b", 255))
	f.Add(v8, true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, v8 bool) {
		d, err := OpenDir(b, v8)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error of an unknown kind: %v", err)
			}
			return
		}
		all := 0
		for i := range d.Len() {
			_, _ = d.Ino(i), d.Type(i)
			all += len(d.Name(i))
			// Unsorted names may hide each other; none may be out of bounds.
			if j := d.Lookup(d.Name(i)); j >= d.Len() {
				t.Errorf("Lookup gives %d of %d", j, d.Len())
			}
		}
		if !v8 && len(d.Names()) != all {
			t.Errorf("names have %d bytes together, %d one by one", len(d.Names()), all)
		}
	})
}

func FuzzXattrs(f *testing.F) {
	f.Add(AppendXattr(AppendXattr(nil, Xattr{"security.x", "1"}), Xattr{"user.y", "22"}))
	f.Add([]byte{0, 2, 1, 0, 'v', 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		xs, err := DecodeXattrs(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error of an unknown kind: %v", err)
			}
			return
		}
		var again []byte
		for _, x := range xs {
			if _, _, ok := SplitXattr(x.Name); !ok {
				t.Errorf("name %q cannot be encoded", x.Name)
			}
			again = AppendXattr(again, x)
		}
		if len(again) != len(b) {
			t.Errorf("%d bytes become %d", len(b), len(again))
		}
	})
}
