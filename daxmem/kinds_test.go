package daxmem

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// docTable is the table of kinds as docs/operating.md has it.
func docTable() string {
	yes := map[bool]string{true: "yes", false: "–"}
	var b strings.Builder
	b.WriteString("| kind | `pool.path` | physical address | dma-buf | block device | cas | division | lives as long as | after a reboot | tested |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s | %s | %s | %s | %s | %s |\n", k.Kind, strings.ReplaceAll(k.Form, ", ", "`, `"),
			yes[k.Address], yes[k.DmaBuf], yes[k.BlockDevice], yes[k.Atomic], k.Parts, k.KeptBy, k.Reboot, k.Tested)
	}
	return b.String()
}

// The documentation has the table that the code has.
func TestKindsDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\n"+docTable()) {
		t.Errorf("docs/operating.md, \"Regions\", has another table than daxmem.Kinds; this one is right:\n%s", docTable())
	}
}

// The table says of each kind what its regions do.
func TestKindsAreTrue(t *testing.T) {
	dev, sys := fakeDevdax(t, "platform/hmem.0", 8*mib, nil)
	dax, err := openFakeDevdax(t, dev, sys, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	ivshmem, err := openIvshmem(fakePCI(t, nil), "", fakeDevice, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	lazy, err := fakeLazyCMA(t, lazyIomem).open("", Location{Name: "Multikernel Memory Pool"}, toOwn)
	if err != nil {
		t.Fatal(err)
	}
	memfd, err := OpenRegion(memfdLocation(t, 2*mib))
	if err != nil {
		t.Fatal(err)
	}
	file, err := CreateFile(t.TempDir()+"/pool", 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	pmem := filePmem(t, 2*mib, 512)
	pmem.address = 1 << 40
	var seen []string
	for _, r := range []Region{file, memfd, &dmaHeapRegion{fakeMappedAs(t, KindDmaHeap)}, dax, pmem, openFake(t, fakeMem(t, somewhere), somewhere, false), ivshmem, lazy} {
		k, ok := InfoOf(r.Kind())
		if !ok {
			t.Fatalf("%s is not in the table", r.Kind())
		}
		seen = append(seen, r.Kind())
		_, dmabuf := r.(interface{ DmaBuf() (*os.File, error) })
		if k.Address != (r.Address() != 0) || k.DmaBuf != dmabuf {
			t.Errorf("%s: address %#x, dma-buf %v; the table says %v, %v", k.Kind, r.Address(), dmabuf, k.Address, k.DmaBuf)
		}
		if fixed := !strings.Contains(k.Parts, "grows"); fixed != r.Fixed() {
			t.Errorf("%s: fixed %v, the table says %q", k.Kind, r.Fixed(), k.Parts)
		}
		w, err := r.Window(0, blockSize, true)
		if err != nil {
			t.Fatal(err)
		}
		if w.Atomic() != k.Atomic {
			t.Errorf("%s: compare-and-swap %v, the table says %v", k.Kind, w.Atomic(), k.Atomic)
		}
		if r.Kind() == KindPmem {
			continue // its file is the test's
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, k := range Kinds() {
		if !slices.Contains(seen, k.Kind) {
			t.Errorf("%s is not tried", k.Kind)
		}
	}
	if _, ok := InfoOf("tape"); ok {
		t.Error("there is a kind tape")
	}
}

// fakeMappedAs is a region over a file that says it is of another kind.
func fakeMappedAs(t *testing.T, kind string) *mappedRegion {
	r := fakeMapped(t, 2*mib, blockSize, false)
	r.kind = kind
	return r
}

// Each form that the table shows is one that ParseLocation takes.
func TestKindsForms(t *testing.T) {
	example := strings.NewReplacer("/PATH", "/a/path", "daxX.Y", "dax0.0", "pmemN", "pmem0", "[NAME,]", "name,", "[,size=SIZE]", ",size=2MiB",
		"SIZE", "2MiB", "ADDRESS", "0x200000", "NAME", "Reserved", "HEAP", "system", "DOMAIN:BUS:DEVICE.FUNCTION", "0000:00:05.0")
	for _, k := range Kinds() {
		for form := range strings.SplitSeq(k.Form, ", ") {
			text := example.Replace(form)
			l, err := ParseLocation(text)
			if err != nil || strings.ContainsAny(text, "[]") || (l.Path == "") != strings.HasPrefix(text, k.Kind+":") {
				t.Errorf("%s: %s: %+v, %v", k.Kind, text, l, err)
			}
		}
	}
}
