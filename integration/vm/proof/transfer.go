package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// The raw numbers, transferRecord lines: of this machine, where hashing and
// copying take the time that they take, and of a guest, which has the other sorts
// of memory.
const (
	importFile      = "import.txt"
	guestImportFile = "import-guest.txt"
)

// transferRecord is one measurement in one kernel.
type transferRecord struct {
	Kernel string `json:"kernel"`
	protocol.Transfer
}

func (b *bench) measureImport(ctx context.Context) error {
	log.Print("import: this machine")
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	return b.keepTransfers(ctx, importFile, strings.TrimSpace(string(release)), b.transferHere)
}

func (b *bench) measureGuestImport(ctx context.Context) error {
	log.Printf("import: %s", b.kernels[0])
	return b.keepTransfers(ctx, guestImportFile, b.kernels[0], b.transferInGuest)
}

func (b *bench) keepTransfers(ctx context.Context, file, kernel string, measure func(context.Context) ([]protocol.Transfer, error)) error {
	raw, err := report.NewRaw(ctx, filepath.Join(b.out, file), b.command(), guestsNote)
	if err != nil {
		return err
	}
	transfers, err := measure(ctx)
	if err != nil {
		return err
	}
	for _, t := range transfers {
		if err := raw.Add(transferRecord{kernel, t}); err != nil {
			return err
		}
	}
	return raw.Save()
}

// transferHere runs in mount namespaces of its own, so that its mounts end with
// it.
func (b *bench) transferHere(ctx context.Context) (_ []protocol.Transfer, err error) {
	giveBack, err := reserveHugePages(protocol.RegionSize >> 21)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, giveBack()) }()
	cmd := exec.CommandContext(ctx, b.inside, "transfer", "-rounds", strconv.Itoa(b.rounds), "-scratch", filepath.Join(b.work, "transfer"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("inside transfer: %w", err)
	}
	return report.DecodeLines[protocol.Transfer](out.Bytes())
}

// reserveHugePages asks for n more huge pages of 2 MiB. There may be fewer: then
// hugetlbfs is left out.
func reserveHugePages(n int) (giveBack func() error, err error) {
	const count = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(count)
	if err != nil {
		return nil, err
	}
	had, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", count, err)
	}
	set := func(n int) error { return os.WriteFile(count, []byte(strconv.Itoa(n)), 0) }
	return func() error { return set(had) }, set(had + n)
}

// Memory of the guest that is set aside at boot: reserved RAM, and RAM that
// counts as persistent memory. All lies below 2 GiB, where machines of any size
// have RAM, with gaps: what touches would be one.
const (
	reservedAt = 0x18000000
	legacyAt   = 0x38000000 // the second pmem region
	legacy2At  = 0x58000000 // the third
)

func (b *bench) transferInGuest(ctx context.Context) (_ []protocol.Transfer, err error) {
	pool, closePool, err := vm.NewPool(protocol.RegionSize)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closePool()) }()
	shared, closeShared, err := vm.NewPool(512 << 20) // a PCI device's memory is a power of two
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeShared()) }()
	g, err := b.boot(ctx, b.kernels[0], vm.Machine{
		Memory: 5 << 30, Pool: pool, Ivshmem: shared,
		Modules: []string{"dax_pmem", "device_dax", "nd_e820"},
		Append: fmt.Sprintf("memmap=%d$%#x memmap=%d!%#x memmap=%d!%#x hugepages=%d", protocol.RegionSize, reservedAt,
			protocol.RegionSize, legacyAt, protocol.RegionSize, legacy2At, protocol.RegionSize>>21),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	regions, err := g.makeRegions(ctx)
	if err != nil {
		return nil, err
	}
	// An emulated CPU would be long about all the files.
	args := []string{b.inside, "transfer", "-rounds", strconv.Itoa(b.rounds), "-part", "8", "-turns", "1"}
	for _, r := range regions {
		args = append(args, "-region", r[0]+"="+r[1])
	}
	r, err := g.Run(ctx, vm.Command{
		Args: args,
		// See boot: the Go runtime copies with string instructions too.
		Env:    []string{"GODEBUG=cpu.erms=off"},
		Stderr: os.Stderr, // its progress
	})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("inside transfer: exit status %d", r.Code)
	}
	if err != nil {
		return nil, err
	}
	return report.DecodeLines[protocol.Transfer](r.Stdout)
}

// makeRegions makes what the guest's memory is named by, and returns names and
// locations.
func (g *guest) makeRegions(ctx context.Context) (regions [][2]string, err error) {
	add := func(name, location string) { regions = append(regions, [2]string{name, location}) }
	// nd_pmem takes what is left; a name-space that it has cannot become a DAX device.
	for _, d := range []struct {
		name     string
		n, align int
	}{{"devdax, 2 MiB", 0, 2 << 20}, {"devdax, 4 KiB", 2, 4096}} {
		device, err := g.MakeDevdax(ctx, d.n, d.align)
		if err != nil {
			return nil, err
		}
		add(d.name, device)
	}
	if _, err := g.run(ctx, "modprobe", "nd_pmem"); err != nil {
		return nil, err
	}
	add("pmem", "/dev/pmem1")
	add("phys", fmt.Sprintf("phys:%#x,size=%d", reservedAt, protocol.RegionSize))
	ivshmem, err := g.IvshmemDevice(ctx)
	if err != nil {
		return nil, err
	}
	add("ivshmem", "ivshmem:"+ivshmem)
	add("dma-heap", fmt.Sprintf("dma-heap:system,size=%d", protocol.RegionSize))
	const limit = "/sys/module/udmabuf/parameters/size_limit_mb"
	if _, err := g.run(ctx, "sh", "-c", fmt.Sprintf("echo %d >%s", protocol.RegionSize>>20, limit)); err != nil {
		return nil, err
	}
	return regions, nil
}
