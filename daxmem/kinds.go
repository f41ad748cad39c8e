package daxmem

// Sorts of regions.
const (
	KindFile    = "file"     // a file: on disk, tmpfs or hugetlbfs
	KindMemfd   = "memfd"    // an anonymous file in memory, a dma-buf by udmabuf
	KindDmaHeap = "dma-heap" // a dma-buf of a heap of the kernel
	KindDevdax  = "devdax"   // a DAX device, /dev/daxX.Y
	KindPmem    = "pmem"     // a block device over persistent memory, /dev/pmemN
	KindPhys    = "phys"     // a bare range of physical memory
	KindIvshmem = "ivshmem"  // the memory of a PCI device that virtual machines share
	KindLazyCMA = "lazy-cma" // contiguous memory that the driver lazy_cma allocates
)

// KindInfo is what regions of a kind can do. Texts are for people.
type KindInfo struct {
	Kind string
	// Form is how a location is written.
	Form string
	// Address reports that the memory has one physical address.
	Address bool
	// DmaBuf reports that it can be had as a dma-buf, as engine.DmaBuf.
	DmaBuf bool
	// BlockDevice reports that it is one, which EROFS can mount with DAX.
	BlockDevice bool
	// Atomic reports that compare-and-swap decides between kernels, so that
	// seats and ownership need no numbers from the operator.
	Atomic bool
	// Parts is how the memory is divided between pools and other users.
	Parts string
	// KeptBy is what the memory lives as long as; Reboot is what is left of it
	// after a reboot of the kernel, and after a loss of power.
	KeptBy, Reboot string
	// Tested is where the code has run.
	Tested string
}

// Kinds lists all kinds. docs/operating.md has the same table, and a test
// compares the two.
func Kinds() []KindInfo {
	return []KindInfo{
		{
			Kind: KindFile, Form: "/PATH", Atomic: true,
			Parts:  "any size, grows, gives space back",
			KeptBy: "the file system", Reboot: "disk: all that was synced; tmpfs, hugetlbfs: nothing",
			Tested: "here",
		},
		{
			Kind: KindMemfd, Form: "memfd:[NAME,]size=SIZE", DmaBuf: true, Atomic: true,
			Parts:  "any size, fixed",
			KeptBy: "a descriptor or mapping in any process; a mount keeps its pages, not its name", Reboot: "nothing",
			Tested: "here; dma-buf in guests",
		},
		{
			Kind: KindDmaHeap, Form: "dma-heap:HEAP,size=SIZE", DmaBuf: true, Atomic: true,
			Parts:  "any size, fixed; each owner has its own",
			KeptBy: "a descriptor or mapping of the owner's process; a mount keeps it, without a name", Reboot: "nothing",
			Tested: "in guests",
		},
		{
			Kind: KindDevdax, Form: "/dev/daxX.Y", Address: true, Atomic: true,
			Parts:  "the whole device; daxctl makes more",
			KeptBy: "the device", Reboot: "pmem: all that was synced; CXL and other RAM: a reboot as far as firmware leaves it, no loss of power",
			Tested: "pmem in guests; other memory by fake sysfs",
		},
		{
			Kind: KindPmem, Form: "/dev/pmemN", Address: true, BlockDevice: true,
			Parts:  "the whole device; ndctl makes more",
			KeptBy: "the device", Reboot: "all that was synced; virtual machines: what the host keeps",
			Tested: "in guests",
		},
		{
			Kind: KindPhys, Form: "phys:ADDRESS,size=SIZE, phys:NAME[,size=SIZE]", Address: true, Atomic: true,
			Parts:  "any range in units of 2 MiB; by name, the whole entry of /proc/iomem",
			KeptBy: "the machine", Reboot: "a reboot as far as firmware leaves it, no loss of power",
			Tested: "in guests",
		},
		{
			Kind: KindIvshmem, Form: "ivshmem:DOMAIN:BUS:DEVICE.FUNCTION", Address: true, Atomic: true,
			Parts:  "the whole BAR 2",
			KeptBy: "the host's memory behind it", Reboot: "the guest's: all; the host's: nothing",
			Tested: "in guests",
		},
		{
			Kind: KindLazyCMA, Form: "lazy-cma:NAME[,size=SIZE]", Address: true, Atomic: true,
			Parts:  "one allocation of any size, fixed",
			KeptBy: "the driver, until it is unloaded or told to free it", Reboot: "nothing",
			Tested: "by a fake device: no kernel here has the driver",
		},
	}
}

// InfoOf returns what regions of a kind can do.
func InfoOf(kind string) (KindInfo, bool) {
	for _, k := range Kinds() {
		if k.Kind == kind {
			return k, true
		}
	}
	return KindInfo{}, false
}

// schemes lists the forms of locations that are no paths.
func schemes() []string {
	var out []string
	for _, k := range Kinds() {
		if _, ok := forms[k.Kind]; ok {
			out = append(out, k.Form)
		}
	}
	return out
}
