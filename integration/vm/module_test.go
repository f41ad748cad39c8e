package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hello = `#include <linux/module.h>
#include "hello.h"

static int __init hello_init(void)
{
	pr_info(HELLO);
	return 0;
}

static void __exit hello_exit(void) {}

module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("says hello");
`

// A module builds, is built once for the same sources, and does not build with
// a warning; what was built loads.
func TestModule(t *testing.T) {
	EachKernel(t, func(t *testing.T, k Kernel) {
		dir := t.TempDir()
		write := func(name, content string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("Kbuild", "obj-m := hello.o\n")
		write("hello.c", hello)
		write("hello.h", `#define HELLO "hello from `+t.Name()+`\n"`+"\n")
		ko, err := k.buildModule(t.Context(), dir, "hello")
		if err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(ko)
		if err != nil {
			t.Fatal(err)
		}
		again, err := k.buildModule(t.Context(), dir, "hello")
		if err != nil || again != ko {
			t.Fatalf("built once more: %s, %v, want %s", again, err, ko)
		}
		if after, err := os.Stat(ko); err != nil || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("the same sources were built twice: %v", err)
		}

		write("hello.c", strings.Replace(hello, "return 0;", "int unused; return 0;", 1))
		if ko, err := k.buildModule(t.Context(), dir, "hello"); err == nil || !strings.Contains(err.Error(), "unused") {
			t.Errorf("a module with a warning: %s, %v; want an error about the unused variable", ko, err)
		}
		if k.sparse {
			write("hello.c", strings.Replace(hello, "return 0;", "{ static int __user *p; return *p; }", 1))
			if ko, err := k.buildModule(t.Context(), dir, "hello"); err == nil || !strings.Contains(err.Error(), "dereference of noderef") {
				t.Errorf("a module that sparse warns of: %s, %v; want an error about noderef", ko, err)
			}
		}

		if testing.Short() {
			return
		}
		g := Start(t, Machine{Kernel: k, Shared: filepath.Dir(ko)})
		g.MustRun(t, "insmod", ko)
		if !strings.Contains(g.Console(), "hello from "+t.Name()) {
			t.Error("the module did not say hello")
		}
		g.MustRun(t, "rmmod", "hello")
	})
}

func TestWarnings(t *testing.T) {
	output := `make: Entering directory '/usr/src/linux-headers-6.12.95+deb12-amd64'
  CC [M]  /build/x/hello.o
/build/x/hello.c:7:6: warning: unused variable ‘x’ [-Wunused-variable]
  CHECK   /build/x/hello.c
/build/x/hello.c:9:5: error: bad thing
WARNING: modpost: missing MODULE_DESCRIPTION() in /build/x/hello.o
  LD [M]  /build/x/warning.ko
Skipping BTF generation for /build/x/hello.ko due to unavailability of vmlinux
`
	got := warnings(output)
	if len(got) != 3 || !strings.Contains(got[0], "unused variable") || !strings.Contains(got[1], "bad thing") || !strings.Contains(got[2], "modpost") {
		t.Errorf("warnings: %q, want lines 3, 5 and 6", got)
	}
}

// A module comes after all that it needs, once.
func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"modules.dep": `kernel/fs/a-b.ko: kernel/lib/c.ko kernel/lib/d.ko
kernel/lib/c.ko: kernel/lib/d.ko
kernel/lib/d.ko:
kernel/fs/e.ko: kernel/lib/d.ko
`,
		"modules.builtin": "kernel/drivers/virtio-pci.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x, err := readModuleIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	var l loadOrder
	for _, name := range []string{"a-b", "e", "a_b", "virtio_pci"} {
		l.add(x, name)
	}
	want := dir + strings.Join([]string{"/kernel/lib/d.ko", "/kernel/lib/c.ko", "/kernel/fs/a-b.ko", "/kernel/fs/e.ko"}, " "+dir)
	if got := strings.Join(l.paths, " "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if !x.builtin["virtio_pci"] || x.has("virtio_pci") || x.has("f") {
		t.Errorf("virtio_pci is built in: %v, a module: %v; f a module: %v", x.builtin["virtio_pci"], x.has("virtio_pci"), x.has("f"))
	}
}
