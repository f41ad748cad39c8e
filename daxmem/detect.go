package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Found is memory of this machine in which a pool could be.
type Found struct {
	Kind string // KindDevdax and so on
	// Location is its text form. SIZE and NAME stand for what the operator
	// chooses.
	Location string
	// Detail is for people: how large it is, where, and who has it.
	Detail string
	// Taken says why it cannot be used as it is, or is empty.
	Taken string
}

// Detect looks for memory of every kind but files below root, which is "/". It
// opens no device, and whether what it finds holds something is not known. The
// error is about what could not be looked at; the rest is returned all the same.
func Detect(root string) ([]Found, error) {
	m := detector{root}
	var out []Found
	var errs []error
	for _, look := range []func() ([]Found, error){m.memfd, m.dmaHeaps, m.devdax, m.pmem, m.phys, m.ivshmem, m.lazyCMA} {
		found, err := look()
		out = append(out, found...)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// detector looks below a root directory.
type detector struct{ root string }

func (m detector) at(path string) string { return filepath.Join(m.root, path) }

// names lists the entries of a directory that fit, none where there is no such
// directory.
func (m detector) names(dir, fit string) ([]string, error) {
	entries, err := os.ReadDir(m.at(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	re := regexp.MustCompile("^" + fit + "$")
	var out []string
	for _, e := range entries {
		if re.MatchString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

func (m detector) exists(path string) bool {
	_, err := os.Stat(m.at(path))
	return err == nil
}

// driver is the name of the driver that has a device of sysfs, or empty.
func (m detector) driver(device string) string {
	to, err := os.Readlink(m.at(filepath.Join(device, "driver")))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// memfd needs nothing, but its pages are of use to an engine by udmabuf only.
func (m detector) memfd() ([]Found, error) {
	if !m.exists(systemUdmabuf.device) {
		return nil, nil
	}
	f := Found{Kind: KindMemfd, Location: KindMemfd + ":size=SIZE", Detail: "memory of this kernel, by " + systemUdmabuf.device}
	if limit, err := readNumber(m.at(systemUdmabuf.limit)); err == nil {
		f.Detail += fmt.Sprintf(", up to %d MiB (%s)", limit, systemUdmabuf.limit)
	}
	return []Found{f}, nil
}

func (m detector) dmaHeaps() (out []Found, err error) {
	heaps, err := m.names(devDmaHeap, `[A-Za-z0-9_-]+`)
	for _, h := range heaps {
		out = append(out, Found{Kind: KindDmaHeap, Location: KindDmaHeap + ":" + h + ",size=SIZE", Detail: "memory of this kernel, by the heap " + h})
	}
	return out, err
}

func (m detector) devdax() (out []Found, err error) {
	const devices = "/sys/bus/dax/devices"
	names, err := m.names(devices, `dax[0-9]+\.[0-9]+`)
	for _, n := range names {
		dir := filepath.Join(devices, n)
		f := Found{Kind: KindDevdax, Location: "/dev/" + n}
		size, err1 := readNumber(m.at(filepath.Join(dir, "size")))
		align, err2 := readNumber(m.at(filepath.Join(dir, "align")))
		address, err3 := readHex(m.at(filepath.Join(dir, "resource")))
		switch {
		case errors.Join(err1, err2) != nil:
			f.Taken = errors.Join(err1, err2).Error()
		case err3 != nil:
			f.Detail = fmt.Sprintf("%s in units of %s, without one address", units.BytesSize(float64(size)), units.BytesSize(float64(align)))
		default:
			f.Detail = fmt.Sprintf("%s in units of %s at %#x", units.BytesSize(float64(size)), units.BytesSize(float64(align)), address)
		}
		switch driver := m.driver(dir); {
		case driver == "kmem":
			f.Taken = "the kernel has it as RAM: daxctl reconfigure-device -m devdax " + n
		case size == 0 && f.Taken == "":
			f.Taken = "it is empty"
		case !m.exists(f.Location) && f.Taken == "":
			f.Taken = "no driver has it, there is no " + f.Location
		}
		out = append(out, f)
	}
	return out, err
}

func (m detector) pmem() (out []Found, err error) {
	const devices = "/sys/class/block"
	names, err := m.names(devices, `pmem[0-9.]+s?`)
	for _, n := range names {
		dir := filepath.Join(devices, n)
		f := Found{Kind: KindPmem, Location: "/dev/" + n}
		// In units of 512 bytes, whatever the sector size.
		sectors, err := readNumber(m.at(filepath.Join(dir, "size")))
		dax, _ := os.ReadFile(m.at(filepath.Join(dir, "queue/dax"))) // none is no
		switch {
		case err != nil:
			f.Taken = err.Error()
		case strings.TrimSpace(string(dax)) != "1":
			f.Taken = "it has no DAX: its namespace is in another mode than raw or fsdax"
		}
		f.Detail = units.BytesSize(float64(sectors * 512))
		out = append(out, f)
	}
	return out, err
}

// setAside are the names in /proc/iomem of memory that the kernel leaves to
// others: firmware's specific-purpose memory, and multikernel's pool.
var setAside = regexp.MustCompile(`^(Soft Reserved|[Mm]ultikernel.*)$`)

// phys finds what /proc/iomem calls set aside, and what memmap=SIZE$ADDRESS of
// the command line does; the kernel calls that "Reserved", as it calls firmware's
// own memory, which is nobody's to take.
func (m detector) phys() (out []Found, err error) {
	text, err := os.Open(m.at("/proc/iomem"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer text.Close()
	all, err := parseIomem(text)
	if err != nil {
		return nil, err
	}
	if hidden(all) {
		return nil, fmt.Errorf("/proc/iomem shows no addresses to this process: %w", os.ErrPermission)
	}
	for _, r := range all {
		if setAside.MatchString(r.name) {
			out = append(out, physFound(all, r))
		}
	}
	line, err := os.ReadFile(m.at("/proc/cmdline"))
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	for _, l := range memmaps(string(line)) {
		f := Found{Kind: KindPhys, Location: l.String(), Detail: units.BytesSize(float64(l.Size)) + ", memmap= of the command line"}
		if err := findRAM(all, l); err != nil {
			f.Taken = err.Error()
		}
		out = append(out, f)
	}
	return out, err
}

// physFound is a resource as a region: by name where that is enough, since its
// address may be another one after the next boot.
func physFound(all []*resource, r *resource) Found {
	address, size := r.alignedRange()
	l := Location{Address: address, Size: size}
	f := Found{Kind: KindPhys, Location: l.String(), Detail: fmt.Sprintf("%s, %s at %#x", units.BytesSize(float64(size)), r.name, address)}
	named := Location{Scheme: KindPhys, Name: r.name}
	if at, err := findNamed(all, named); err == nil && at == l {
		f.Location = named.String()
	}
	switch {
	case !r.free():
		f.Taken = strings.Join(r.within, ", ") + " has a part of it"
	case size == 0:
		f.Taken = "it has no whole 2 MiB"
	}
	return f
}

// memmaps are the ranges of whole 2 MiB that a command line takes from the kernel
// by memmap=SIZE$ADDRESS[,SIZE$ADDRESS…] (Documentation/admin-guide/
// kernel-parameters.txt).
func memmaps(line string) (out []Location) {
	for _, word := range strings.Fields(line) {
		list, ok := strings.CutPrefix(word, "memmap=")
		if !ok {
			continue
		}
		for _, one := range strings.Split(list, ",") {
			size, address, ok := strings.Cut(one, "$")
			from, err1 := memparse(address)
			n, err2 := memparse(size)
			if !ok || err1 != nil || err2 != nil || n == 0 || from+n < from {
				continue
			}
			r := resource{from: from, to: from + n - 1}
			if at, whole := r.alignedRange(); whole > 0 {
				out = append(out, Location{Address: at, Size: whole})
			}
		}
	}
	return out
}

// memparse reads a number as the kernel's function of that name does: any base,
// and K, M, G or T behind it.
func memparse(s string) (uint64, error) {
	shift := 0
	if s != "" {
		shift = 10 * (1 + strings.Index("KMGT", strings.ToUpper(s[len(s)-1:])))
	}
	if shift > 0 {
		s = s[:len(s)-1]
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err == nil && n > maxPhysical>>shift {
		err = strconv.ErrRange
	}
	return n << shift, err
}

func (m detector) ivshmem() (out []Found, err error) {
	names, err := m.names(sysPCI, `[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]`)
	for _, n := range names {
		dir := filepath.Join(sysPCI, n)
		address, size, err := ivshmemMemory(m.at(dir))
		if errors.Is(err, ErrInvalid) || errors.Is(err, os.ErrNotExist) {
			continue // another device, one without memory, or one that has gone
		}
		f := Found{Kind: KindIvshmem, Location: KindIvshmem + ":" + n, Detail: fmt.Sprintf("%s at %#x", units.BytesSize(float64(size)), address)}
		switch {
		case err != nil:
			f.Detail, f.Taken = "", err.Error()
		case m.driver(dir) != "":
			f.Taken = "the driver " + m.driver(dir) + " has it"
		case size%disk.HugeSize != 0 || address%disk.HugeSize != 0:
			f.Taken = "it is not whole 2 MiB"
		}
		out = append(out, f)
	}
	return out, err
}

func (m detector) lazyCMA() ([]Found, error) {
	if !m.exists(devLazyCMA) {
		return nil, nil
	}
	return []Found{{Kind: KindLazyCMA, Location: KindLazyCMA + ":NAME,size=SIZE", Detail: "contiguous memory of this kernel, for others, by " + devLazyCMA}}, nil
}
