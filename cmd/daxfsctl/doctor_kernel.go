package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel looks at what the running kernel has.
func (d *doctor) kernel() {
	if uid := os.Geteuid(); uid == 0 {
		d.add("root", ok, "runs as root", "")
	} else {
		d.add("root", fail, fmt.Sprintf("runs as uid %d: engines, directories, pool and daemon are not looked at", uid), "run daxfsctl doctor as root")
	}
	release := kernelRelease()
	if kernelAtLeast(release, 5, 19) {
		d.add("kernel", ok, "Linux "+release, "")
		d.add("idmapped_mounts", ok, "containers in user namespaces run without chown", "")
	} else {
		d.add("kernel", warn, "Linux "+release, "Linux 6.1 or later is what is tested; 6.16 or later mounts the pool file directly")
		d.add("idmapped_mounts", warn, "EROFS has none before Linux 5.19: containers in user namespaces copy and chown their image",
			"Linux 5.19 or later, or leave \"remap-ids\" out of containerd's capabilities")
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		d.add("erofs", fail, err.Error(), "")
		return
	}
	for _, fs := range []struct{ name, option, remedy string }{
		{"erofs", "CONFIG_EROFS_FS", "modprobe erofs, or a kernel with CONFIG_EROFS_FS"},
		{"overlay", "CONFIG_OVERLAY_FS", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS"},
	} {
		switch {
		case strings.Contains(string(filesystems), "\t"+fs.name+"\n"):
			d.add(fs.name, ok, "the kernel has it", "")
		case hasModule(fs.name):
			d.add(fs.name, ok, "the kernel has it as a module, loaded at the first mount", "")
		case fs.name == "erofs": // needed by some engines only
			d.add(fs.name, warn, "not in /proc/filesystems, and there is no module", fs.remedy)
		default:
			d.add(fs.name, fail, "not in /proc/filesystems, and there is no module", fs.remedy)
		}
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// hasModule reports whether the running kernel has a module of that name.
func hasModule(name string) bool {
	deps, err := os.ReadFile(filepath.Join("/lib/modules", kernelRelease(), "modules.dep"))
	return err == nil && strings.Contains(string(deps), "/"+name+".ko")
}
