package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// Who gets an image, and what mounts it there.
const (
	toKernel = "kernel" // one that has the same memory at the same address
	toQEMU   = "qemu"   // a VM that is given a file's memory

	byDaxfs = "daxfs"
	byErofs = "erofs-dax"
)

// handoff is an image and how it is to be handed out.
type handoff struct {
	region   engine.Region
	offset   int64
	writable bool
	words    string // to be added to command lines
}

// way is one in which another kernel can have the image, or with a reason, one
// in which it cannot.
type way struct {
	To           string   `json:"to"`
	Engine       string   `json:"engine"`
	CommandLine  string   `json:"command_line,omitempty"`  // of the kernel there
	QEMU         []string `json:"qemu,omitempty"`          // arguments, without the command line
	DeviceMemory int64    `json:"device_memory,omitempty"` // what -m's maxmem= has to have above the VM's memory, bytes
	Reason       string   `json:"reason,omitempty"`
}

// ways are all there are, best first.
func (h *handoff) ways() []*way {
	return []*way{
		h.way(toKernel, byDaxfs, h.physical),
		h.way(toQEMU, byDaxfs, h.region0),
		h.way(toQEMU, byErofs, h.erofs),
	}
}

// way completes a way whose command line, or why there is none, root returns.
func (h *handoff) way(to, engine string, root func() (string, error)) *way {
	w := &way{To: to, Engine: engine}
	line, err := root()
	if err == nil && to == toQEMU {
		w.QEMU, err = h.qemu()
	}
	if err != nil {
		return &way{To: to, Engine: engine, Reason: err.Error()}
	}
	if w.CommandLine = line + " ro"; h.words != "" {
		w.CommandLine += " " + h.words
	}
	if to == toQEMU {
		w.DeviceMemory = h.region.Size()
	}
	return w
}

// physical is the root of a kernel in whose memory the image lies.
func (h *handoff) physical() (string, error) {
	address := h.region.Address()
	if address == 0 {
		return "", fmt.Errorf("%s is of kind %s, which has no physical address: memory has one (phys:ADDRESS,size=SIZE or /dev/pmemN), and a file's memory can be given to a VM (--qemu)",
			h.region.Path(), h.region.Kind())
	}
	if err := h.aligned(); err != nil {
		return "", err
	}
	return h.byModule(fmt.Sprintf("%#x", address)), nil
}

// region0 is the root of a VM by our module. Where the VM has the memory is known
// there only, by the region's name.
func (h *handoff) region0() (string, error) { return h.byModule("region0"), nil }

// byModule is the root by our module, in memory at phys. fsoffset= is the module's
// other name for offset=, which a mount(8) in an initrd would take for a loop
// device's. nd_pmem would take memory that it sees before daxfs does.
func (h *handoff) byModule(phys string) string {
	return fmt.Sprintf("root=none rootfstype=daxfs rootflags=phys=%s,size=%d,fsoffset=%d modprobe.blacklist=nd_pmem",
		phys, h.region.Size(), h.offset)
}

// erofs is the root of a VM by the EROFS of a stock kernel, which looks for it
// at the beginning of a device.
func (h *handoff) erofs() (string, error) {
	if h.offset != 0 {
		return "", fmt.Errorf("the image is at %d of %s, and the kernel's EROFS takes one at the beginning of a device", h.offset, h.region.Path())
	}
	if err := engine.SelfContained(engine.Source{Region: h.region, Size: h.region.Size()}); err != nil {
		return "", err
	}
	return "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always", nil
}

// qemu are the arguments that give a VM the memory. It cannot be written there
// unless asked for: the owner trusts what is in it.
func (h *handoff) qemu() ([]string, error) {
	if h.region.Kind() != "file" {
		return nil, fmt.Errorf("%s is of kind %s, and QEMU shares the memory of files: on tmpfs, hugetlbfs or a disk", h.region.Path(), h.region.Kind())
	}
	if err := h.aligned(); err != nil {
		return nil, fmt.Errorf("%w (an image's file: truncate -s %%2M; a pool: pool.max_size)", err)
	}
	path, err := filepath.Abs(h.region.Path())
	if err != nil {
		return nil, err
	}
	object := fmt.Sprintf("memory-backend-file,id=daxfs,share=on,mem-path=%s,size=%d", strings.ReplaceAll(path, ",", ",,"), h.region.Size())
	if !h.writable {
		object += ",readonly=on"
	}
	return []string{"-object", object, "-device", "virtio-pmem-pci,memdev=daxfs"}, nil
}

// aligned reports whether a kernel can make page structs for all of the memory.
func (h *handoff) aligned() error {
	if address, size := h.region.Address(), h.region.Size(); address%disk.HugeSize != 0 || size%disk.HugeSize != 0 {
		return fmt.Errorf("%s is memory at %#x of %d bytes, want multiples of 2 MiB", h.region.Path(), address, size)
	}
	return nil
}

// String is the way as text: a command line, or arguments for a shell.
func (w *way) String() string {
	if w.To == toKernel {
		return w.CommandLine
	}
	var words []string
	for _, a := range append(w.QEMU, "-append", w.CommandLine) {
		words = append(words, shellQuote(a))
	}
	return strings.Join(words, " ")
}

// notes are what else the way needs.
func (w *way) notes() []string {
	initrd := "the initrd has to load daxfs: script/initramfs-tools"
	if w.Engine == byErofs {
		initrd = "the initrd has to load virtio_pmem, nd_pmem and erofs: script/initramfs-tools"
	}
	notes := []string{initrd}
	if w.To == toQEMU {
		notes = append(notes, fmt.Sprintf("QEMU's -m needs maxmem= of the VM's memory and %d bytes more", w.DeviceMemory))
	}
	return notes
}

// shellQuote makes one word for a POSIX shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:,=@%+", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
