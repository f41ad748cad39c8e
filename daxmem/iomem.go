package daxmem

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// resource is a line of /proc/iomem: who a range of physical addresses belongs to.
type resource struct {
	from, to uint64 // the last address, too
	name     string
	// within are the names of the resources inside it: drivers and others that
	// have a part of it.
	within []string
}

// alignedRange is the part of a resource that begins and ends at multiples of
// 2 MiB.
func (r *resource) alignedRange() (address uint64, size int64) {
	address = (r.from + disk.HugeSize - 1) &^ (disk.HugeSize - 1)
	end := (r.to + 1) &^ (disk.HugeSize - 1)
	if end <= address {
		return address, 0
	}
	return address, int64(end - address)
}

func (r *resource) String() string {
	s := fmt.Sprintf("[%#x,%#x]", r.from, r.to)
	if len(r.within) > 0 {
		s += " with " + strings.Join(r.within, ", ") + " in it"
	}
	return s
}

func readIomem() ([]*resource, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseIomem(f)
}

// parseIomem reads a text such as /proc/iomem's:
//
//	00001000-0009fbff : System RAM
//	  0000a000-0000bfff : one of its parts
//
// Without the right to see addresses they are all zero: see hidden.
func parseIomem(text io.Reader) ([]*resource, error) {
	var all, outer []*resource // outer: what the line is within, by depth
	sc := bufio.NewScanner(text)
	for sc.Scan() {
		line := strings.TrimLeft(sc.Text(), " ")
		depth := (len(sc.Text()) - len(line)) / 2
		extent, name, ok := strings.Cut(line, " : ")
		first, last, ok2 := strings.Cut(extent, "-")
		from, err1 := strconv.ParseUint(first, 16, 64)
		to, err2 := strconv.ParseUint(last, 16, 64)
		if !ok || !ok2 || err1 != nil || err2 != nil || depth > len(outer) {
			return nil, fmt.Errorf("/proc/iomem: line %q is not understood", sc.Text())
		}
		r := &resource{from: from, to: to, name: name}
		if outer = outer[:depth]; depth > 0 {
			outer[depth-1].within = append(outer[depth-1].within, name)
		}
		all, outer = append(all, r), append(outer, r)
	}
	return all, sc.Err()
}

// hidden reports whether the kernel keeps the addresses from this process.
func hidden(all []*resource) bool {
	return !slices.ContainsFunc(all, func(r *resource) bool { return r.to != 0 })
}

// systemRAM is memory that the kernel uses itself; "System RAM (kmem)" is what
// the driver kmem has given it of a DAX device.
const systemRAM = "System RAM"

// findRAM refuses l if System RAM is in it.
func findRAM(all []*resource, l Location) error {
	for _, r := range all {
		if strings.HasPrefix(r.name, systemRAM) && r.from < l.Address+uint64(l.Size) && r.to >= l.Address {
			return invalidf("[%#x,+%#x) overlaps %s at [%#x,%#x], which the kernel uses", l.Address, l.Size, r.name, r.from, r.to)
		}
	}
	return nil
}

// ourResource is what our module calls a range that images are mounted from.
const ourResource = "daxfs"

// free reports whether nobody has a part of the resource but our own module.
func (r *resource) free() bool {
	for _, name := range r.within {
		if name != ourResource {
			return false
		}
	}
	return true
}

// resourcesNamed are the resources called name.
func resourcesNamed(all []*resource, name string) []*resource {
	var out []*resource
	for _, r := range all {
		if r.name == name {
			out = append(out, r)
		}
	}
	return out
}

// findNamed finds the range of physical memory that l.Name means: the one
// resource with that name that nobody has taken a part of, and of l.Size bytes
// where a size is given. Where that does not decide, nothing is guessed.
func findNamed(all []*resource, l Location) (Location, error) {
	if hidden(all) {
		return Location{}, fmt.Errorf("/proc/iomem shows no addresses to this process: %w", os.ErrPermission)
	}
	list := resourcesNamed(all, l.Name)
	if len(list) == 0 {
		return Location{}, fmt.Errorf("/proc/iomem has no %q: %w", l.Name, ErrNoMemory)
	}
	var fit []Location
	var seen []string
	for _, r := range list {
		seen = append(seen, r.String())
		address, size := r.alignedRange()
		if r.free() && size > 0 && (l.Size == 0 || l.Size == size) {
			fit = append(fit, Location{Address: address, Size: size})
		}
	}
	wanted := "without other resources in them"
	if l.Size != 0 {
		wanted = fmt.Sprintf("%s and of %d bytes", wanted, l.Size)
	}
	if len(fit) != 1 {
		return Location{}, invalidf("/proc/iomem has %d resources %q, %d of them of 2 MiB and more %s, want 1: %s; take phys:ADDRESS,size=SIZE",
			len(list), l.Name, len(fit), wanted, strings.Join(seen, ", "))
	}
	return fit[0], nil
}
