package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// An image of a pool is handed out where it lies in the pool, by our module
// only, and the text says what keeps it.
func TestImageHandoff(t *testing.T) {
	s := newSite(t)
	s.run("c", appName())
	var image, layer *daxmem.Record
	for _, r := range s.pool.Records() {
		switch r.Kind {
		case daxmem.KindImage:
			image = r
		case daxmem.KindLayer:
			layer = r
		}
	}
	if image == nil || layer == nil {
		t.Fatal("no image or no layer")
	}
	spec := func(r *daxmem.Record) string { return fmt.Sprintf("pool:%x", r.Key[:8]) }
	var res handoffJSON
	s.json(0, &res, "image", "handoff", spec(image))
	if res.Image != fmt.Sprintf("pool:%x", image.Key) || res.Offset != image.Offset || res.Region.Path != s.poolPath() || res.Region.Kind != "file" || res.Region.Size != 64<<20 {
		t.Errorf("%+v", res)
	}
	wants(t, res.Keep, "nothing pins the image", "container or snapshot", "seat")
	if len(res.Ways) != 3 || res.Ways[0].Reason == "" || res.Ways[1].Reason != "" || res.Ways[1].DeviceMemory != 64<<20 {
		t.Fatalf("%+v", res.Ways)
	}
	wants(t, res.Ways[1].CommandLine, fmt.Sprintf(",size=%d,fsoffset=%d ", 64<<20, image.Offset))
	wants(t, res.Ways[2].Reason, "beginning of a device")
	out, errOut, code := s.ctl("image", "handoff", "--qemu", spec(image))
	if code != 0 {
		t.Fatalf("%d: %s%s", code, out, errOut)
	}
	wants(t, out, res.Ways[1].CommandLine, "mem-path="+s.poolPath()+",size=67108864,readonly=on")
	wants(t, errOut, "daxfsctl: note: "+res.Keep)

	// By its chain ID, where other chains are on top.
	s.run("b", baseName())
	s.serve()
	s.json(0, &res, "image", "handoff", "pool:"+chainID("", 3))
	if res.Offset == image.Offset || res.Ways[1].Reason != "" {
		t.Errorf("%+v", res)
	}

	if _, errOut, code := s.ctl("image", "handoff", "--qemu", spec(layer)); code != 1 || !strings.Contains(errOut, "a layer cannot be handed out") {
		t.Errorf("a layer: %d, %s", code, errOut)
	}
}

// placed is a file's bytes as memory of another kind.
type placed struct {
	*os.File
	kind    string
	address uint64
	size    int64
}

func (p placed) Kind() string    { return p.kind }
func (p placed) Path() string    { return "the " + p.kind + " region" }
func (p placed) Address() uint64 { return p.address }
func (p placed) Size() int64     { return p.size }

var _ engine.Region = placed{}

// What each kind of memory can be handed out by does not depend on the machine.
func TestHandoffWays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := writeSample(file, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const (
		phys   = "root=none rootfstype=daxfs rootflags=phys=0x100000000,size=4194304,fsoffset=0 modprobe.blacklist=nd_pmem ro"
		module = "root=none rootfstype=daxfs rootflags=phys=region0,size=4194304,fsoffset=0 modprobe.blacklist=nd_pmem ro"
		erofs  = "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro"
	)
	for _, c := range []struct {
		region placed
		want   [3]string // command lines, or reasons
	}{
		{placed{f, "phys", 1 << 32, 4 << 20}, [3]string{phys, "QEMU shares the memory of files", "QEMU shares the memory of files"}},
		{placed{f, "pmem", 1 << 32, 4 << 20}, [3]string{phys, "is of kind pmem", "is of kind pmem"}},
		{placed{f, "file", 0, 4 << 20}, [3]string{"no physical address", module, erofs}},
		{placed{f, "pmem", 1<<32 + 4096, 4 << 20}, [3]string{"memory at 0x100001000 of 4194304 bytes, want multiples of 2 MiB", "is of kind pmem", "is of kind pmem"}},
		{placed{f, "phys", 1 << 32, 4<<20 - 4096}, [3]string{"of 4190208 bytes", "is of kind phys", "is of kind phys"}},
	} {
		ways := (&handoff{region: c.region}).ways()
		if len(ways) != len(c.want) {
			t.Fatalf("%+v", ways)
		}
		for i, w := range ways {
			switch {
			case w.CommandLine == c.want[i]:
			case w.CommandLine != "" || w.Reason == "" || !strings.Contains(w.Reason, c.want[i]):
				t.Errorf("%s at %#x to %s by %s: %+v, want %q", c.region.kind, c.region.address, w.To, w.Engine, w, c.want[i])
			}
			if (w.To == toQEMU && w.Reason == "") != (len(w.QEMU) > 0) {
				t.Errorf("%s to %s by %s: arguments %q", c.region.kind, w.To, w.Engine, w.QEMU)
			}
		}
	}
	// The other dialect is for our module.
	v8 := filepath.Join(t.TempDir(), "v8")
	if err := writeSample(v8, true); err != nil {
		t.Fatal(err)
	}
	g, err := os.Open(v8)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ways := (&handoff{region: placed{g, "file", 0, 2 << 20}}).ways()
	if ways[1].Reason != "" || !strings.Contains(ways[2].Reason, "no EROFS view") {
		t.Errorf("v8: %+v %+v", ways[1], ways[2])
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "-append": "-append", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'", "id=a,size=1": "id=a,size=1", "ä": "'ä'", "*": "'*'", "~": "'~'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
